//! Generates messages and clients of the CRI API, apart from crimux's own, so that a test double never
//! shares code with what it tests. The simulated runtime answers from raw bytes and needs no generated
//! server.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../proto/cri.proto");
    let descriptors = protox::compile(["../proto/cri.proto"], ["../proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
