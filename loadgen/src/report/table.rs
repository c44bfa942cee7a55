//! The result for people.

use std::fmt;
use std::time::Duration;

use super::{PERCENTILES, Report, Tally, histogram};
use crate::unit::{show_bytes, show_duration};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = &self.total;
        writeln!(
            f,
            "{} requests in {}, {:.0}/s, on {} connections made ({}, {} thread{})",
            total.requests(),
            show_duration(self.elapsed),
            self.rate(),
            self.connections,
            self.driver,
            self.workers,
            if self.workers == 1 { "" } else { "s" },
        )?;
        writeln!(
            f,
            "{}; {} sent, {} received",
            self.asked.arrivals,
            show_bytes(self.bytes_sent),
            show_bytes(self.bytes_received)
        )?;
        if self.handshakes > 0 {
            let took = |share| show_duration(histogram::quantile(&self.handshake, share));
            let parameters: Vec<&str> = self.tls_parameters.keys().map(String::as_str).collect();
            writeln!(
                f,
                "{} TLS handshakes, {} resumed, p50 {}, p99 {}, by {}",
                self.handshakes,
                self.resumed,
                took(0.5),
                took(0.99),
                parameters.join(" and ")
            )?;
        }
        writeln!(f)?;
        counts(f, total)?;
        for (text, count) in &self.explanations {
            writeln!(f, "  {count} times: {text}")?;
        }
        if total.answered() > 0 {
            latencies(f, self)?;
        }
        if self.entries.len() > 1 {
            entries(f, self)?;
        }
        // Where the rate never changes, neither does what there is to see over time.
        if self.asked.open_loop && self.asked.per_second.is_none() {
            over_time(f, self)?;
        }
        writeln!(f)?;
        write!(f, "  generator busy {:.0} %", self.busy_share() * 100.0)?;
        if self.waiting_share() > 0.01 {
            write!(f, ", waiting for a core {:.0} %", self.waiting_share() * 100.0)?;
        }
        if !self.delay.is_empty() {
            write!(
                f,
                ", its own delay p50 {}, p99 {}, max {}",
                show_duration(self.delay_quantile(0.5)),
                show_duration(self.delay_quantile(0.99)),
                show_duration(Duration::from_nanos(self.delay.max())),
            )?;
        }
        for warning in self.warnings() {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}

fn counts(f: &mut fmt::Formatter<'_>, total: &Tally) -> fmt::Result {
    writeln!(f, "  succeeded {:>10}   {:.3} %", total.succeeded, total.success_rate() * 100.0)?;
    writeln!(f, "  failed    {:>10}", total.failed())?;
    writeln!(f, "  cut       {:>10}   (no answer: the connection ended)", total.cut())?;
    for (status, count) in &total.statuses {
        writeln!(f, "  status {status} {count:>12}")?;
    }
    for (cause, count) in &total.failures {
        writeln!(f, "  {:<10}{count:>10}", cause.label())?;
    }
    for (value, count) in &total.field_values {
        let share = *count as f64 / total.answered().max(1) as f64 * 100.0;
        writeln!(f, "  {:<10}{count:>10}   {share:.1} %", if value.is_empty() { "(none)" } else { value })?;
    }
    Ok(())
}

/// In an open loop what the users saw, and beside it what the server took; in a closed one they are the same.
fn latencies(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let total = &report.total;
    match report.asked.open_loop {
        true => writeln!(f, "\n              {:>9}  {:>9}", "latency", "service")?,
        false => writeln!(f, "\n              {:>9}", "latency")?,
    }
    let mut row = |name: &str, latency: Duration, service: Duration| match report.asked.open_loop {
        true => writeln!(f, "    {name:>9} {:>9}  {:>9}", show_duration(latency), show_duration(service)),
        false => writeln!(f, "    {name:>9} {:>9}", show_duration(latency)),
    };
    row("mean", total.mean(), Duration::from_secs_f64(report.service.mean() / 1e9))?;
    for (name, share) in PERCENTILES {
        row(name, total.quantile(share), histogram::quantile(&report.service, share))?;
    }
    row("max", total.slowest(), Duration::from_nanos(report.service.max()))
}

/// Rows that the time is divided into.
const ROWS: usize = 10;

fn over_time(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let slices = report.slices.done();
    if slices.len() < ROWS {
        return Ok(());
    }
    writeln!(f, "\n        until   requests/s     errors        p50        p99        max")?;
    let length = report.slices.length();
    let mut end = Duration::ZERO;
    for rows in slices.chunks(slices.len().div_ceil(ROWS)) {
        let begin = end;
        end = (begin + length * rows.len() as u32).min(report.elapsed);
        let mut latency = histogram::new();
        rows.iter().for_each(|slice| slice.latency.add_to(&mut latency));
        let requests: u64 = rows.iter().map(|slice| slice.requests).sum();
        let succeeded: u64 = rows.iter().map(|slice| slice.succeeded).sum();
        writeln!(
            f,
            "    {:>9} {:>12.0} {:>10}  {:>9}  {:>9}  {:>9}",
            show_duration(end),
            requests as f64 / end.saturating_sub(begin).as_secs_f64().max(1e-9),
            requests - succeeded,
            show_duration(histogram::quantile(&latency, 0.5)),
            show_duration(histogram::quantile(&latency, 0.99)),
            show_duration(Duration::from_nanos(latency.max())),
        )?;
    }
    Ok(())
}

fn entries(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(f, "\n    requests  succeeded        p50        p99   entry")?;
    for (name, tally) in &report.entries {
        writeln!(
            f,
            "  {:>10} {:>10}  {:>9}  {:>9}   {name}",
            tally.requests(),
            tally.succeeded,
            show_duration(tally.quantile(0.5)),
            show_duration(tally.quantile(0.99)),
        )?;
    }
    Ok(())
}
