//! A result read back from its file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::histogram::Sparse;
use super::json::{SCHEMA, SCHEMA_VERSION, decode};
use super::slice::Slice;

/// What of a result is compared.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Such as `open loop at 1000 requests a second, evenly spaced`.
    pub arrivals: String,
    /// Whether latencies count from the instant a request was due.
    pub open_loop: bool,
    /// How long it took.
    pub elapsed: Duration,
    /// How long a slice is.
    pub slice_length: Duration,
    /// What ended in each slice; only whole ones.
    pub slices: Vec<Slice>,
    /// Whether the generator measured itself.
    pub generator_was_bottleneck: bool,
}

/// Why a file is no result that can be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{file} is no result of ringmesh-load; save one with `ringmesh-load http URL --json > {file}`")]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// It was written by another version.
    #[error(
        "{file} has schema version {found}, and this ringmesh-load reads version {SCHEMA_VERSION}: compare with the \
         ringmesh-load that wrote it ({writer}), or measure again"
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// The version of the program that wrote it.
        writer: String,
    },
    /// A field is missing or is not what it must be.
    #[error("{file} is damaged: `{field}` is missing or is not what it must be")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The field.
        field: &'static str,
    },
}

impl Saved {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no result, or one of another version.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
        let foreign = || Error::Foreign { file: file.to_owned() };
        let value: Value = serde_json::from_str(&text).map_err(|_| foreign())?;
        if value["schema"] != SCHEMA {
            return Err(foreign());
        }
        let found = value["schema_version"].as_u64().ok_or_else(foreign)?;
        if found != SCHEMA_VERSION {
            let writer = value["version"].as_str().unwrap_or("of unknown version").to_owned();
            return Err(Error::Version { file: file.to_owned(), found, writer });
        }
        Self::parse(&value).map_err(|field| Error::Damaged { file: file.to_owned(), field })
    }

    fn parse(value: &Value) -> Result<Self, &'static str> {
        let seconds = |value: &Value| Duration::try_from_secs_f64(value.as_f64()?).ok();
        let elapsed = seconds(&value["elapsed_seconds"]).ok_or("elapsed_seconds")?;
        let length = seconds(&value["slices"]["seconds"]).filter(|length| !length.is_zero());
        let slice_length = length.ok_or("slices.seconds")?;
        let whole = (elapsed.as_nanos() / slice_length.as_nanos()) as usize;
        let done = value["slices"]["done"].as_array().ok_or("slices.done")?;
        Ok(Self {
            arrivals: value["asked"]["arrivals"].as_str().ok_or("asked.arrivals")?.to_owned(),
            open_loop: value["asked"]["open_loop"].as_bool().ok_or("asked.open_loop")?,
            elapsed,
            slice_length,
            slices: done.iter().take(whole).map(slice).collect::<Option<_>>().ok_or("slices.done")?,
            generator_was_bottleneck: value["generator_was_bottleneck"].as_bool().ok_or("generator_was_bottleneck")?,
        })
    }
}

fn slice(value: &Value) -> Option<Slice> {
    Some(Slice {
        requests: value["requests"].as_u64()?,
        succeeded: value["succeeded"].as_u64()?,
        latency: Sparse::new(&decode(value["histogram_ns"].as_str()?)?),
    })
}
