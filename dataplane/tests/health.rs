//! When endpoints are asked whether they serve. The clock is the world's: it moves only when nothing else can.
#![allow(clippy::unwrap_used, reason = "a test ends where its own world is broken")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use ringmesh_dataplane::health::Checker;
use ringmesh_model::health::Probe;
use ringmesh_model::snapshot::{HealthCheck, Key, Object};
use ringmesh_ring::Net;
use ringmesh_ring::memory::block_on;
use world::World;

#[test]
fn an_interval_that_is_edited_counts_from_the_last_probe_at_once() {
    let (world, checker) = (World::new(), Checker::default());
    let set_interval = |interval: Option<Duration>| {
        let before = world.worker.tables();
        world.reload(|objects| {
            if let Some(Object::Service(service)) = objects.get_mut(&Key::Service("s".into())) {
                Arc::make_mut(service).health_check = interval.map(|interval| HealthCheck {
                    probe: Probe::Tcp,
                    interval,
                    timeout: Duration::from_secs(1),
                    healthy_after: 1,
                    unhealthy_after: 1,
                });
            }
        });
        checker.commit(&world.worker, &before);
    };
    block_on(&world.net, async {
        let hour = Duration::from_hours(1);
        set_interval(Some(hour));
        world.accept().await;
        let mut last = world.net.now();
        let pass = async |seconds| {
            ringmesh_ring::sleep_until(world.net.now() + Duration::from_secs(seconds)).await;
        };
        // Shorter, shorter than what has passed, and longer; in seconds.
        for (passed, interval, expected) in [(10, 100, 100), (60, 50, 60), (10, 200, 200)] {
            pass(passed).await;
            set_interval(Some(Duration::from_secs(interval)));
            world.accept().await;
            let took = world.net.now().saturating_since(last);
            let expected = Duration::from_secs(expected);
            let tenth = expected / 10;
            assert!(expected - tenth <= took && took <= expected + tenth, "{took:?} instead of {expected:?}");
            last = world.net.now();
            set_interval(Some(hour));
        }
        // One that is taken away and comes again begins anew.
        set_interval(None);
        pass(1).await;
        set_interval(Some(hour));
        world.accept().await;
        assert!(world.net.now().saturating_since(last) < Duration::from_secs(3));
    });
}
