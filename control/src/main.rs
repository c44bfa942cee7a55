//! The `ringmesh` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use ringmesh_ring::heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> ExitCode {
    ringmesh_control::cli::main()
}
