use super::*;
use std::time::Duration;

#[derive(Clone, Copy, Default)]
struct Endpoint {
    in_flight: u32,
    avoided_until: Option<Instant>,
    is_unhealthy: bool,
}

impl Candidate for Endpoint {
    fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn avoided_until(&self) -> Option<Instant> {
        self.avoided_until
    }

    fn is_unhealthy(&self) -> bool {
        self.is_unhealthy
    }
}

/// A small generator, so that a failure repeats.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    }
}

fn picks(balance: Balance, endpoints: &[Endpoint], tried: &Tried, now: Instant, rounds: u64) -> Vec<u64> {
    let mut random = numbers(7);
    let mut counts = vec![0; endpoints.len()];
    for turn in 0..rounds {
        let draw = || Draw { now, turn, random: random() };
        if let Some(index) = pick(balance, endpoints.len(), |index| endpoints[index], tried, draw) {
            counts[index] += 1;
        }
    }
    counts
}

#[test]
fn round_robin_gives_each_endpoint_the_same() {
    let counts = picks(Balance::RoundRobin, &[Endpoint::default(); 4], &Tried::default(), Instant::now(), 400);
    assert_eq!(counts, [100; 4]);
}

#[test]
fn least_request_spreads_evenly_and_spares_the_loaded() {
    let even = picks(Balance::LeastRequest, &[Endpoint::default(); 4], &Tried::default(), Instant::now(), 40_000);
    assert!(even.iter().all(|count| count.abs_diff(10_000) < 600), "{even:?}");
    let mut endpoints = [Endpoint::default(); 4];
    endpoints[2].in_flight = 9;
    let spared = picks(Balance::LeastRequest, &endpoints, &Tried::default(), Instant::now(), 40_000);
    assert_eq!(spared[2], 0, "it loses every comparison: {spared:?}");
}

#[test]
fn an_endpoint_that_failed_is_passed_over_until_its_time_is_up() {
    let now = Instant::now() + Duration::from_secs(10);
    let mut endpoints = [Endpoint::default(); 2];
    endpoints[0].avoided_until = Some(now + Duration::from_secs(1));
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        assert_eq!(picks(balance, &endpoints, &Tried::default(), now, 100), [0, 100]);
        let later = picks(balance, &endpoints, &Tried::default(), now + Duration::from_secs(1), 100);
        assert!(later[0] > 20, "{later:?}");
    }
}

#[test]
fn a_retry_goes_elsewhere_and_ends_when_all_were_tried() {
    let mut tried = Tried::default();
    tried.note(1);
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        let counts = picks(balance, &[Endpoint::default(); 3], &tried, Instant::now(), 300);
        assert_eq!(counts[1], 0);
        assert_eq!(counts.iter().sum::<u64>(), 300);
    }
    tried.note(0);
    tried.note(2);
    assert_eq!(picks(Balance::LeastRequest, &[Endpoint::default(); 3], &tried, Instant::now(), 9), [0; 3]);
    assert_eq!(picks(Balance::LeastRequest, &[], &tried, Instant::now(), 9), [0; 0]);
}

#[test]
fn when_all_are_avoided_one_is_tried_all_the_same() {
    let now = Instant::now();
    let endpoint = Endpoint { in_flight: 0, is_unhealthy: false, avoided_until: Some(now + Duration::from_secs(1)) };
    let counts = picks(Balance::LeastRequest, &[endpoint; 3], &Tried::default(), now, 300);
    assert_eq!(counts.iter().sum::<u64>(), 300);
}

#[test]
fn an_endpoint_that_does_not_serve_is_passed_over_and_the_others_share_its_part() {
    // A row of sick ones: whoever stands behind it must not get what all of them do not.
    let mut endpoints = [Endpoint::default(); 10];
    endpoints[2..7].iter_mut().for_each(|endpoint| endpoint.is_unhealthy = true);
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        let counts = picks(balance, &endpoints, &Tried::default(), Instant::now(), 50_000);
        assert_eq!(counts[2..7], [0; 5], "{counts:?}");
        let well = || counts[..2].iter().chain(&counts[7..]);
        assert!(well().all(|count| count.abs_diff(10_000) < 700), "{counts:?}");
    }
}

#[test]
fn where_no_endpoint_serves_all_are_used_and_a_retry_takes_a_sick_one_last() {
    let now = Instant::now();
    let mut endpoints = [Endpoint { is_unhealthy: true, ..Endpoint::default() }; 4];
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        let counts = picks(balance, &endpoints, &Tried::default(), now, 400);
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
    }
    // One that is well and was just not to be reached goes before those that are sick.
    endpoints[1] = Endpoint { avoided_until: Some(now + Duration::from_secs(1)), ..Endpoint::default() };
    let mut tried = Tried::default();
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        assert_eq!(picks(balance, &endpoints, &tried, now, 100), [0, 100, 0, 0]);
    }
    tried.note(1);
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        let counts = picks(balance, &endpoints, &tried, now, 100);
        assert_eq!((counts[1], counts.iter().sum::<u64>()), (0, 100), "{counts:?}");
    }
}

#[test]
fn where_there_is_no_choice_neither_clock_nor_chance_is_asked() {
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        let only = [Endpoint { avoided_until: Some(Instant::FAR_FUTURE), ..Endpoint::default() }];
        let mut tried = Tried::default();
        for expected in [Some(0), None] {
            assert_eq!(pick(balance, 1, |index| only[index], &tried, || unreachable!()), expected, "{balance:?}");
            tried.note(0);
        }
        assert_eq!(pick(balance, 0, |index| only[index], &Tried::default(), || unreachable!()), None, "{balance:?}");
    }
}
