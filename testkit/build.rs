//! Generates messages, client and server of the CRI API, apart from crimux's own, so that a test double
//! never shares code with what it tests.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../proto/cri.proto");
    let descriptors = protox::compile(["../proto/cri.proto"], ["../proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
