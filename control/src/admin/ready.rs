//! `/ready`: whether traffic is served as it is configured.

use ringmesh_model::snapshot::{Object, Snapshot};

use crate::state::{Phase, State};

/// Everything that is missing, in words; nothing: ready. `wanted` is what is being published, if anything is.
pub fn missing(state: &State, wanted: Option<&Snapshot>) -> Vec<String> {
    let mut missing = Vec::new();
    if state.dataplane.phase != Phase::Running {
        missing.push(format!("the data plane is {}", state.dataplane.phase.as_str()));
    }
    match (state.config.live_version, state.config.version) {
        (0, _) => missing.push("no config is live yet".to_owned()),
        (live, version) if live != version => {
            missing.push(format!("config version {version} is not live on all workers yet, {live} goes on"));
        }
        _ => {}
    }
    let bound = |name: &str| state.listeners.iter().any(|listener| listener.name == name);
    for object in wanted.iter().flat_map(|snapshot| snapshot.objects.values()) {
        if let Object::Listener(listener) = object
            && !bound(&listener.name)
        {
            missing.push(format!("listener `{}` is not bound to {}", listener.name, listener.bind));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ready_state, snapshot};
    use super::*;

    fn check(change: impl FnOnce(&mut State), expected: &[&str]) {
        let mut state = ready_state();
        change(&mut state);
        assert_eq!(missing(&state, Some(&snapshot())), expected);
    }

    #[test]
    fn it_is_ready_when_the_wanted_version_is_live_and_every_listener_bound() {
        check(|_| {}, &[]);
    }

    #[test]
    fn what_is_missing_is_named() {
        check(|state| state.dataplane.phase = Phase::Restarting, &["the data plane is restarting"]);
        check(|state| state.config.live_version = 0, &["no config is live yet"]);
        check(|state| state.config.version = 8, &["config version 8 is not live on all workers yet, 7 goes on"]);
        check(|state| state.listeners.clear(), &["listener `inbound` is not bound to 127.0.0.1:15006"]);
    }

    #[test]
    fn nothing_is_ready_before_anything_is_known() {
        let missing = missing(&State::default(), None);
        assert_eq!(missing, ["the data plane is starting", "no config is live yet"]);
    }
}
