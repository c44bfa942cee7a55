//! What the generator allocates: nothing for a request, and little for each tenth of a second.

use std::sync::Arc;
use std::time::Duration;

use ringmesh_ring::allocator::counts;
use ringmesh_ring::setup::{self, probe_all};
use ringmesh_ring::{Instant, mailbox, runtime};

use super::worker::{self, Arrival, Part};
use super::{Entry, Progress, Settings};
use crate::arrival::{Arrivals, Spacing};
use crate::report::Report;
use crate::serve::{self, Http, Service};

/// Time in which buffers, tables and the timer get their size.
const WARM: Duration = Duration::from_millis(700);

/// Time that is looked at.
const LOOKED_AT: Duration = Duration::from_millis(800);

/// Closing slices of time, looking at the clock of the thread and at the kernel's account of it.
const MAX_ALLOCATIONS_A_SECOND: f64 = 250.0;

/// How often it is measured at most.
const TRIES: usize = 10;

/// Allocations on the load's thread a second, and requests a second.
fn measure(grant: &setup::Grant, arrivals: Arrivals, connections: usize) -> (f64, f64) {
    let server = serve::start_on(
        grant,
        serve::Settings::new(
            "127.0.0.1:0".parse().unwrap(),
            Service::Http(Http { body_bytes: 100, ..Http::default() }),
        ),
    );
    let server = server.unwrap();
    let settings = Settings {
        arrivals,
        connections,
        duration: Some(WARM + LOOKED_AT + WARM),
        ..Settings::http(server.address().into(), vec![Entry::get("shop", "/")])
    };
    let report = Report::new(&settings, settings.entry_names(), grant.driver.to_string());
    let progress = Arc::new(Progress::new(1, &report));
    let (mut senders, receiver) = mailbox::mailbox(1, 1).unwrap();
    let arrival = Arrival(progress.clone());
    let part = Part { index: 0, settings, progress, arrival };
    let (looked, seen) = std::sync::mpsc::channel();
    let load = async {
        let start = Instant::now();
        runtime::spawn(async move {
            runtime::sleep_until(start + WARM).await;
            let before = counts();
            runtime::sleep_until(start + WARM + LOOKED_AT).await;
            looked.send(counts().allocations - before.allocations).unwrap();
        });
        worker::run(part, report, receiver).await
    };
    let report = setup::run(grant, load).unwrap().unwrap();
    drop(senders.pop());
    assert_eq!(report.total.succeeded, report.total.requests(), "{report}");
    (seen.recv().unwrap() as f64 / LOOKED_AT.as_secs_f64(), report.rate())
}

#[test]
fn a_steady_plain_request_allocates_nothing() {
    for grant in probe_all() {
        let open = |per_second| Arrivals::Open {
            rate: crate::arrival::Rate::constant(per_second),
            spacing: Spacing::Poisson { seed: 1 },
        };
        for (arrivals, connections) in [(Arrivals::Closed, 32), (open(3_000.0), 50)] {
            // A machine that is busy with others does too few to show anything; then once more.
            let tries = (0..TRIES).map(|_| measure(&grant, arrivals.clone(), connections));
            let enough = |(_, requests): &(f64, f64)| *requests > 4.0 * MAX_ALLOCATIONS_A_SECOND;
            let (allocations, requests) = tries.into_iter().find(enough).expect("the machine has time for a load");
            assert!(
                allocations < MAX_ALLOCATIONS_A_SECOND,
                "{}, {connections} connections: {allocations} allocations and {requests} requests a second",
                grant.driver
            );
        }
    }
}
