//! What each part of a request's path costs, in nanoseconds: `cargo bench -p ringmesh-bench`, or with a word such as
//! `route` for those with it in their names.

use criterion::{Criterion, criterion_group, criterion_main};
use ringmesh_bench::memory::{self, World};
use ringmesh_bench::parts;

criterion_group!(benches, parts_of_a_request, many_hosts);
criterion_main!(benches);

fn parts_of_a_request(c: &mut Criterion) {
    for part in parts::ALL {
        c.bench_function(part.name, |b| {
            let mut run = part.prepare().expect("memory");
            b.iter_custom(|count| {
                let began = std::time::Instant::now();
                run(count);
                began.elapsed()
            });
        });
    }
}

fn many_hosts(c: &mut Criterion) {
    c.bench_function("request/with-client-and-service/10000-hosts", |b| {
        let world = World::new(10_000).expect("memory");
        b.iter_custom(|count| memory::time(&world, count));
    });
}
