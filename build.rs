//! Generates, from `proto/cri.proto`: its message types, its descriptor for the tests that hold the method
//! table against it, the number of every field (`cri::fields`), and the list of RPCs (`cri::Rpc`). protox
//! compiles in process, so no `protoc` is needed.

use std::fmt::Write as _;

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/cri.proto");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(["proto/cri.proto"], ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("cri.descriptor.bin"), descriptors.encode_to_vec())?;
    std::fs::write(out.join("cri.fields.rs"), fields(&descriptors)?)?;
    std::fs::write(out.join("cri.rpc.rs"), rpcs(&descriptors)?)?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}

/// One module for each message, in it one module for each field with its `NUMBER`. For a field that is a
/// message, `message` is that message's module, so that a path of fields is resolved by the compiler.
fn fields(descriptors: &FileDescriptorSet) -> Result<String, std::fmt::Error> {
    let mut code = String::new();
    for message in descriptors.file.iter().flat_map(|file| &file.message_type) {
        writeln!(code, "pub mod {} {{", message.name())?;
        for field in &message.field {
            writeln!(code, "pub mod r#{} {{ pub const NUMBER: u32 = {};", field.name(), field.number())?;
            let of = field.type_name().rsplit('.').next().unwrap_or_default();
            if field.r#type() == Type::Message && !is_map_entry(message, of) {
                writeln!(code, "pub use super::super::{of} as message;")?;
            }
            code.push_str("}\n");
        }
        code.push_str("}\n");
    }
    Ok(code)
}

fn is_map_entry(message: &DescriptorProto, name: &str) -> bool {
    message.nested_type.iter().any(|nested| nested.name() == name)
}

/// The enum of all RPCs in the order of the API, with the name and the service of each.
fn rpcs(descriptors: &FileDescriptorSet) -> Result<String, std::fmt::Error> {
    let (mut variants, mut names, mut services) = (String::new(), String::new(), String::new());
    for service in descriptors.file.iter().flat_map(|file| &file.service) {
        for method in &service.method {
            let name = method.name();
            writeln!(variants, "/// `{}.{name}`.\n{name},", service.name())?;
            writeln!(names, "Self::{name} => \"{name}\",")?;
            writeln!(services, "Self::{name} => \"{}\",", service.name())?;
        }
    }
    Ok(format!(
        "/// An RPC of the CRI API; its number is its place in the API.\n\
         #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]\npub enum Rpc {{\n{variants}}}\n\
         impl Rpc {{\n\
         /// Returns its name, as in the API.\n\
         pub const fn name(self) -> &'static str {{ match self {{ {names} }} }}\n\
         /// Returns the name of its service.\n\
         pub const fn service(self) -> &'static str {{ match self {{ {services} }} }}\n}}\n"
    ))
}
