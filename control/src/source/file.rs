//! Tells when files have changed.
//!
//! The kernel's events come at once, but not from every file system (NFS, some container mounts); so a slow look at the
//! files runs beside them. Either way a change counts only if a file looks different: editors and mounted ConfigMaps
//! replace files by renaming, which makes events for many names.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How often files are looked at without an event. Each look wakes an idle sidecar twice, which may wake five times a second in
/// all; where the kernel tells of changes, they take effect at once.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long files must rest before a change is told: editors write in several steps.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Longest that a change is held back while files do not rest.
const MAX_DEBOUNCE: Duration = Duration::from_secs(1);

/// What a file looks like from outside: device, inode, length, and when its content, mode or name was last changed.
type Look = Option<(u64, u64, u64, i64, i64)>;

fn look(path: &Path) -> Look {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.ctime(), file.ctime_nsec()))
}

/// A change that is held back until the files rest.
struct Unrest {
    quiet: Instant,
    last: Instant,
}

/// Watches some files.
pub struct Watcher {
    files: Vec<(PathBuf, Look)>,
    notices: mpsc::Receiver<()>,
    /// Keeps the channel open where the kernel gives no events.
    _tell: mpsc::Sender<()>,
    notify: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    next_look: Instant,
    unrest: Option<Unrest>,
}

impl Watcher {
    /// Watches these files, whether or not they exist.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let (tell, notices) = mpsc::channel(1);
        let mut watcher = Self {
            files: Vec::new(),
            notices,
            notify: events(tell.clone()),
            _tell: tell,
            folders: BTreeSet::new(),
            next_look: Instant::now() + LOOK_INTERVAL,
            unrest: None,
        };
        watcher.watch(files);
        watcher
    }

    /// Watches these files from now on. Those that were watched before keep their last look.
    pub fn watch(&mut self, files: Vec<PathBuf>) {
        let before = std::mem::take(&mut self.files);
        let known = |path: &Path| before.iter().find(|(known, _)| known == path).map(|(_, look)| *look);
        self.files = files
            .into_iter()
            .map(|path| (known(&path).unwrap_or_else(|| look(&path)), path))
            .map(|(look, path)| (path, look))
            .collect();
        let folders: BTreeSet<PathBuf> = self.files.iter().filter_map(|(path, _)| path.parent()).map(folder).collect();
        let Some(notify) = &mut self.notify else { return };
        for gone in self.folders.difference(&folders) {
            let _ = notify.unwatch(gone);
        }
        // A folder that does not exist yet is found by the slow look.
        let watched =
            |new: &PathBuf| self.folders.contains(new) || notify.watch(new, RecursiveMode::NonRecursive).is_ok();
        self.folders = folders.into_iter().filter(watched).collect();
    }

    /// Waits until files have changed and rest again, and says which. May be dropped at any time without loss.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        loop {
            let wake = self.unrest.as_ref().map_or(self.next_look, |unrest| unrest.quiet.min(unrest.last));
            let noticed = tokio::select! {
                _ = self.notices.recv() => true,
                () = sleep_until(wake) => false,
            };
            let now = Instant::now();
            match &mut self.unrest {
                Some(unrest) if noticed => unrest.quiet = now + DEBOUNCE,
                Some(_) => {
                    self.unrest = None;
                    return self.take_changes();
                }
                None if self.files.iter().any(|(path, seen)| look(path) != *seen) => {
                    self.unrest = Some(Unrest { quiet: now + DEBOUNCE, last: now + MAX_DEBOUNCE });
                }
                None => {}
            }
            self.next_look = now + LOOK_INTERVAL;
        }
    }

    fn take_changes(&mut self) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        for (path, seen) in &mut self.files {
            let now = look(path);
            if now != *seen {
                *seen = now;
                changed.push(path.clone());
            }
        }
        changed
    }
}

/// Makes the kernel tell of changes, where it can.
fn events(tell: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let told = move |event: notify::Result<notify::Event>| {
        if !matches!(event, Ok(event) if matches!(event.kind, EventKind::Access(_))) {
            // Full means that a notice waits already.
            let _ = tell.try_send(());
        }
    };
    notify::recommended_watcher(told)
        .inspect_err(|error| tracing::warn!(%error, "files are looked at once a second: the kernel gives no events"))
        .ok()
}

/// A folder's path as the kernel takes it: that of a bare file name is here.
fn folder(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::time::timeout;

    use super::*;

    /// Five times what a change may take.
    const DEADLINE: Duration = Duration::from_secs(10);

    async fn check(change: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("mesh.toml");
        fs::write(&file, "old").expect("written");
        let mut watcher = Watcher::new(vec![file.clone(), folder.path().join("other")]);
        change(&file);
        let changed = timeout(DEADLINE, watcher.changed()).await.expect("the change is noticed");
        assert_eq!(changed, [file]);
    }

    #[tokio::test]
    async fn a_file_written_in_place_is_noticed() {
        check(|file| fs::write(file, "longer").expect("written")).await;
    }

    #[tokio::test]
    async fn a_file_replaced_by_renaming_is_noticed() {
        check(|file| {
            let new = file.with_extension("new");
            fs::write(&new, "new").expect("written");
            fs::rename(new, file).expect("renamed");
        })
        .await;
    }

    #[tokio::test]
    async fn a_file_whose_mode_changes_is_noticed() {
        check(|file| fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("changed")).await;
    }

    #[tokio::test]
    async fn a_vanished_file_is_noticed() {
        check(|file| fs::remove_file(file).expect("removed")).await;
    }

    #[tokio::test]
    async fn other_files_of_the_folder_are_not_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("mesh.toml");
        fs::write(&file, "old").expect("written");
        let mut watcher = Watcher::new(vec![file]);
        fs::write(folder.path().join("neighbour"), "new").expect("written");
        timeout(3 * LOOK_INTERVAL, watcher.changed()).await.expect_err("the file itself has not changed");
    }
}
