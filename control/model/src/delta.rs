//! What changed between two snapshots.

use serde::{Deserialize, Serialize};

use crate::snapshot::{Key, Object, Snapshot};

/// The change from one snapshot to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// The version it leads to.
    pub version: u64,
    /// Objects that are new or differ.
    pub put: Vec<(Key, Object)>,
    /// Objects that are gone.
    pub remove: Vec<Key>,
}

impl Delta {
    /// What leads from `old` to `new`.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let put = new
            .objects
            .iter()
            .filter(|(key, object)| old.objects.get(key) != Some(object))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        let remove = old.objects.keys().filter(|key| !new.objects.contains_key(key)).cloned().collect();
        Self { version: new.version, put, remove }
    }

    /// Whether nothing changed but the version.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }

    /// Makes the change in `snapshot`; returns the change that leads back.
    pub fn apply(&self, snapshot: &mut Snapshot) -> Self {
        let mut back = Self { version: snapshot.version, ..Self::default() };
        for key in &self.remove {
            back.put.extend(snapshot.objects.remove_entry(key));
        }
        for (key, object) in &self.put {
            match snapshot.objects.insert(key.clone(), object.clone()) {
                Some(before) => back.put.push((key.clone(), before)),
                None => back.remove.push(key.clone()),
            }
        }
        snapshot.version = self.version;
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Policy;

    fn snapshot(version: u64, names: &[(&str, &str)]) -> Snapshot {
        let objects = names
            .iter()
            .map(|(name, listener)| {
                let policy = Policy { name: (*name).into(), listener: (*listener).into(), allow: Vec::new() };
                (Key::Policy((*name).into()), Object::Policy(policy.into()))
            })
            .collect();
        Snapshot { version, objects }
    }

    #[test]
    fn applying_the_difference_gives_the_new_snapshot_and_the_way_back_the_old_one() {
        let old = snapshot(1, &[("a", "in"), ("b", "in"), ("c", "in")]);
        let new = snapshot(2, &[("a", "in"), ("b", "out"), ("d", "in")]);
        let delta = Delta::between(&old, &new);
        assert_eq!(delta.put.len(), 2, "only what differs is sent");
        assert_eq!(delta.remove, [Key::Policy("c".into())]);
        let mut applied = old.clone();
        let back = delta.apply(&mut applied);
        assert_eq!(applied, new);
        back.apply(&mut applied);
        assert_eq!(applied, old);
    }
}
