//! Compiles the contract; protox needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["postrider/v1/email.proto"], ["../../../proto"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
