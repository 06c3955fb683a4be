//! The linker's scripts: cortex-m-rt's, and the memory's, which it includes.

fn main() {
    println!("cargo::rerun-if-changed=memory.x");
    println!("cargo::rustc-link-search={}", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
    // Sections need not begin at a page of a virtual memory.
    println!("cargo::rustc-link-arg-bins=--nmagic");
}
