//! Parts of a request's path, to be run under callgrind by `ringmesh-bench --instructions` and `--gate`:
//! `ringmesh-bench-parts NAME COUNT`.

#![forbid(unsafe_code)]

use anyhow::Context;
use ringmesh_bench::parts::{self, Run};
use ringmesh_ring::heap::Heap;

/// As in the product.
#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let usage = "usage: ringmesh-bench-parts NAME COUNT";
    let name = words.next().context(usage)?;
    let count = words.next().context(usage)?.parse().context(usage)?;
    counted(&mut parts::find(&name)?.prepare()?, count);
    Ok(())
}

/// Callgrind counts while this runs, and knows it by its name.
#[inline(never)]
fn counted(run: &mut Run, count: u64) {
    run(count);
}
