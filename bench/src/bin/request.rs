//! Whole requests in memory, to be run under callgrind by `ringmesh-bench --instructions`.
//!
//! `ringmesh-bench-request proxy 1000` sends 1,000 through a worker, `ringmesh-bench-request nothing 1000` lets client and
//! service speak directly: the difference is the worker's.

#![forbid(unsafe_code)]

use anyhow::{Context, bail};
use ringmesh_bench::memory::{Between, World};

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let between = match words.next().as_deref() {
        Some("proxy") => Between::Proxy,
        Some("nothing") => Between::Nothing,
        _ => bail!("usage: ringmesh-bench-request proxy|nothing COUNT"),
    };
    let count = words.next().context("how many requests?")?.parse().context("how many requests?")?;
    World::new(1)?.run(between, 0, count, || ());
    Ok(())
}
