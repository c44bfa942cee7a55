//! What a result must be: `p99<5ms`, `errors=0`, `rate>=900`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::report::{Failure, Report};
use crate::syntax::{Cursor, Error};
use crate::unit::show_duration;

const MEASURES: &str = "what is measured: p50 to p99.99 (any percentile), mean, max, service.p99, delay.p99, rate, \
                        requests, errors, failed, cut, timeouts, unsent, status.503, status.5xx, success or busy";
const OPERATOR: &str = "<, <=, >, >= or =";

/// A condition on a result.
///
/// ```text
/// objective = measure ( "<" | "<=" | ">" | ">=" | "=" ) value
/// ```
///
/// Latencies (`p99`, `mean`, `max`, and those of `service.` and `delay.`) are compared with durations; `rate` with
/// requests a second; counts with numbers, or with shares of all requests such as `1%`; `success` and `busy` with shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    text: String,
    measure: Measure,
    operator: Operator,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Measure {
    Latency(Clock, Statistic),
    Rate,
    Count(Count),
    Success,
    Busy,
}

/// Which of the three histograms.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clock {
    Latency,
    Service,
    Delay,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Quantile(f64),
    Mean,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Count {
    Requests,
    Errors,
    Failed,
    Cut,
    Timeouts,
    Unsent,
    Status(u16),
    Class(u16),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Length(Duration),
    Number(f64),
    Share(f64),
}

/// Whether an objective holds, and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Whether it holds.
    pub holds: bool,
    /// What was measured, for people.
    pub measured: String,
}

impl Objective {
    /// Compares a result with it. What was not measured (a latency without answers) does not hold.
    pub fn judge(&self, report: &Report) -> Outcome {
        let Some(measured) = self.measure(report) else {
            return Outcome { holds: false, measured: "no answers".to_owned() };
        };
        let (found, wanted) = match (measured, self.value) {
            (Value::Length(found), Value::Length(wanted)) => (found.as_secs_f64(), wanted.as_secs_f64()),
            (Value::Number(found), Value::Number(wanted)) | (Value::Share(found), Value::Share(wanted)) => {
                (found, wanted)
            }
            _ => unreachable!("a measure is compared with a value of its kind; the text was read so"),
        };
        let holds = match self.operator {
            Operator::Less => found < wanted,
            Operator::LessOrEqual => found <= wanted,
            Operator::Greater => found > wanted,
            Operator::GreaterOrEqual => found >= wanted,
            Operator::Equal => found == wanted,
        };
        Outcome { holds, measured: measured.to_string() }
    }

    fn measure(&self, report: &Report) -> Option<Value> {
        let total = &report.total;
        let measured = match self.measure {
            Measure::Latency(clock, statistic) => {
                let histogram = match clock {
                    Clock::Latency => total.latency(),
                    Clock::Service => report.service(),
                    Clock::Delay => report.delay(),
                };
                if histogram.is_empty() {
                    return None;
                }
                Value::Length(match statistic {
                    Statistic::Quantile(share) => Duration::from_nanos(histogram.value_at_quantile(share)),
                    Statistic::Max => Duration::from_nanos(histogram.max()),
                    Statistic::Mean => Duration::from_secs_f64(histogram.mean() / 1e9),
                })
            }
            Measure::Rate => Value::Number(report.rate()),
            Measure::Success => Value::Share(total.success_rate()),
            Measure::Busy => Value::Share(report.busy_share()),
            Measure::Count(count) => {
                let counted = match count {
                    Count::Requests => total.requests(),
                    Count::Errors => total.requests() - total.succeeded,
                    Count::Failed => total.failed(),
                    Count::Cut => total.cut(),
                    Count::Timeouts => total.failure(Failure::Timeout),
                    Count::Unsent => report.unsent,
                    Count::Status(status) => total.statuses.get(&status).copied().unwrap_or(0),
                    Count::Class(class) => total.class(class),
                };
                match self.value {
                    Value::Share(_) => Value::Share(counted as f64 / (total.requests().max(1)) as f64),
                    _ => Value::Number(counted as f64),
                }
            }
        };
        Some(measured)
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => f.write_str(&show_duration(*length)),
            Self::Number(number) if number.fract() == 0.0 => write!(f, "{number}"),
            Self::Number(number) => write!(f, "{number:.1}"),
            Self::Share(share) => write!(f, "{:.3}%", share * 100.0),
        }
    }
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut cursor = Cursor::new(text);
        let measure = read_measure(&mut cursor)?;
        let operator = read_operator(&mut cursor)?;
        let value = read_value(&mut cursor, measure)?;
        if !cursor.is_at_end() {
            return Err(cursor.expected("the end; several conditions are several options"));
        }
        Ok(Self { text: text.trim().to_owned(), measure, operator, value })
    }
}

fn read_measure(cursor: &mut Cursor<'_>) -> Result<Measure, Error> {
    // Blanks before it are not its place.
    cursor.is_at_end();
    let begin = cursor.at();
    let word = cursor.take_while(|letter| letter.is_ascii_alphanumeric() || letter == '.');
    let wrong = || cursor.expected_at(begin, MEASURES);
    let count = |count| Ok(Measure::Count(count));
    match word {
        "rate" => return Ok(Measure::Rate),
        "success" => return Ok(Measure::Success),
        "busy" => return Ok(Measure::Busy),
        "requests" => return count(Count::Requests),
        "errors" => return count(Count::Errors),
        "failed" => return count(Count::Failed),
        "cut" => return count(Count::Cut),
        "timeouts" => return count(Count::Timeouts),
        "unsent" => return count(Count::Unsent),
        _ => {}
    }
    if let Some(status) = word.strip_prefix("status.") {
        return match (status.strip_suffix("xx"), status.parse()) {
            (Some(class), _) => count(Count::Class(class.parse().map_err(|_| wrong())?)),
            (None, Ok(status @ 100..1000)) => count(Count::Status(status)),
            (None, _) => {
                Err(cursor.expected_at(begin + "status.".len(), "a status such as 503, or a class such as 5xx"))
            }
        };
    }
    let (clock, statistic) = match (word.strip_prefix("service."), word.strip_prefix("delay.")) {
        (Some(statistic), _) => (Clock::Service, statistic),
        (_, Some(statistic)) => (Clock::Delay, statistic),
        (None, None) => (Clock::Latency, word),
    };
    let statistic = match (statistic, statistic.strip_prefix('p')) {
        ("mean", _) => Statistic::Mean,
        ("max", _) => Statistic::Max,
        (_, Some(percentile)) => match percentile.parse::<f64>() {
            Ok(percentile) if (0.0..=100.0).contains(&percentile) => Statistic::Quantile(percentile / 100.0),
            _ => {
                let at = cursor.at() - percentile.len();
                return Err(cursor.expected_at(at, "a percentile from 0 to 100, such as p99 or p99.9"));
            }
        },
        _ => return Err(wrong()),
    };
    Ok(Measure::Latency(clock, statistic))
}

fn read_operator(cursor: &mut Cursor<'_>) -> Result<Operator, Error> {
    // The longer ones first: `<` is the beginning of `<=`.
    let operators = [
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("==", Operator::Equal),
        ("<", Operator::Less),
        (">", Operator::Greater),
        ("=", Operator::Equal),
    ];
    let found = operators.into_iter().find(|(symbol, _)| cursor.take(symbol));
    found.map(|(_, operator)| operator).ok_or_else(|| cursor.expected(OPERATOR))
}

fn read_value(cursor: &mut Cursor<'_>, measure: Measure) -> Result<Value, Error> {
    cursor.is_at_end();
    let begin = cursor.at();
    match measure {
        Measure::Latency(..) => cursor.take_duration("a duration such as 5ms or 1.5s").map(Value::Length),
        Measure::Rate => cursor.take_number("requests a second, such as 900 or 10k").map(Value::Number),
        Measure::Success | Measure::Busy => {
            let number = cursor.take_number("a share such as 99.9% or 0.5")?;
            let share = if cursor.take("%") { number / 100.0 } else { number };
            match (0.0..=1.0).contains(&share) {
                true => Ok(Value::Share(share)),
                false => Err(cursor.expected_at(begin, "a share from 0% to 100%")),
            }
        }
        Measure::Count(_) => {
            let number = cursor.take_number("a number, or a share of all requests such as 1%")?;
            Ok(if cursor.take("%") { Value::Share(number / 100.0) } else { Value::Number(number) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Answered, Ended, Entry, Settings};
    use crate::report::Expected;

    /// A hundred answers of 1 to 100 ms, three of them with status 503, and one timeout.
    fn report() -> Report {
        let address: std::net::SocketAddr = "10.0.0.1:80".parse().unwrap();
        let settings = Settings::http(address.into(), vec![Entry::get("a", "/")]);
        let mut report = Report::new(&settings, [], "none".to_owned());
        let mut record = |milliseconds, outcome| {
            let latency = Duration::from_millis(milliseconds);
            let ended = Ended { entry: 0, begin: ringmesh_ring::Instant::ZERO, outcome };
            report.record(Duration::ZERO, latency, latency, &ended);
        };
        for milliseconds in 1..=100 {
            let (status, expected) = if milliseconds > 97 { (503, Expected::No) } else { (200, Expected::Yes) };
            let answered = Answered { status: Some(status), expected, field: None, bytes_sent: 0, bytes_received: 0 };
            record(milliseconds, Ok(answered));
        }
        record(0, Err(Failure::Timeout));
        report.elapsed = Duration::from_secs(1);
        report
    }

    #[test]
    fn objectives_hold_or_not_as_they_say() {
        let report = report();
        let check = |text: &str, holds: bool, measured: &str| {
            let objective: Objective = text.parse().unwrap_or_else(|error| panic!("{error}"));
            let outcome = objective.judge(&report);
            assert_eq!((outcome.holds, outcome.measured.as_str()), (holds, measured), "{text}");
        };
        check("p50<60ms", true, "50.0 ms");
        check("p50 < 40ms", false, "50.0 ms");
        check("p99.9 <= 100.1ms", true, "100 ms");
        check("max>=100ms", true, "100 ms");
        check("mean<51ms", true, "50.5 ms");
        check("service.p90<1s", true, "90.0 ms");
        check("delay.p99<1s", false, "no answers");
        check("errors=0", false, "4");
        check("errors==4", true, "4");
        check("errors<4%", true, "3.960%");
        check("timeouts<=1", true, "1");
        check("status.503=3", true, "3");
        check("status.5xx<3%", true, "2.970%");
        check("unsent=0", true, "0");
        check("rate>=0.1k", true, "101");
        check("success>96%", true, "96.040%");
        check("busy<0.9", true, "0.000%");
    }

    #[test]
    fn what_is_wrong_with_an_objective_is_told_with_its_place() {
        let check = |text: &str, position: usize, expected: &str| {
            let error = text.parse::<Objective>().unwrap_err();
            assert!(error.position() == position && error.expected().contains(expected), "{text}: {error}");
        };
        check("", 0, "what is measured");
        check(" latency<5ms", 1, "what is measured");
        check("p101<5ms", 1, "a percentile");
        check("service.pxx<5ms", 9, "a percentile");
        check("status.9<5", 7, "a status");
        check("p99", 3, "<, <=");
        check("p99~5ms", 3, "<, <=");
        check("p99<5", 4, "a duration");
        check("errors=x", 7, "a number");
        check("success>200%", 8, "a share from");
        check("p99<5ms,errors=0", 7, "several options");
    }
}
