//! Compiles the protobuf contract with protox, so that no `protoc` has to be installed.
//!
//! The descriptor set is embedded beside the generated types: it is what turns protobuf's JSON mapping into messages.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/postrider/v1/email.proto");
    println!("cargo:rerun-if-changed=migrations");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .include_source_info(false)
        .open_file("postrider/v1/email.proto")?
        .file_descriptor_set();
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let encoded = protox::prost::Message::encode_to_vec(&descriptors);
    fs::write(out_dir.join("postrider.bin"), encoded)?;
    prost_build::Config::new().bytes([".postrider.v1.Attachment"]).compile_fds(descriptors)?;
    Ok(())
}
