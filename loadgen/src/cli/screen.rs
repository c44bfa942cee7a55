//! What is shown while a load runs: a screen that renews itself on a terminal, or a line now and then. On standard error:
//! standard output is the result's.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ringmesh_loadgen::report::{Report, Tally};
use ringmesh_loadgen::unit::show_duration;

/// How often the screen is drawn.
const FRAME: Duration = Duration::from_millis(250);

/// How often a line is written.
const LINE: Duration = Duration::from_secs(1);

/// Frames that the last second has.
const WINDOW: usize = 4;

/// Characters of the bar and of the curve.
const WIDTH: usize = 60;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Progress {
    /// The screen on a terminal, else nothing
    Auto,
    /// Rate, errors and percentiles, drawn four times a second
    Screen,
    /// A line a second
    Line,
    /// Nothing
    None,
}

pub(crate) struct Screen {
    style: Progress,
    colour: bool,
    next: Instant,
    /// The last second.
    window: VecDeque<(Duration, Tally)>,
    /// Requests a second, frame by frame.
    curve: VecDeque<f64>,
    /// Lines that the last frame has.
    drawn: usize,
}

impl Screen {
    pub(crate) fn new(wish: Progress) -> Self {
        let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let style = match (wish, terminal) {
            (Progress::Auto, true) => Progress::Screen,
            (Progress::Auto, false) => Progress::None,
            (wish, _) => wish,
        };
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let (window, curve) = (VecDeque::new(), VecDeque::new());
        Self { style, colour, next: Instant::now(), window, curve, drawn: 0 }
    }

    /// Whether something is to be shown now.
    pub(crate) fn is_due(&self) -> bool {
        self.style != Progress::None && Instant::now() >= self.next
    }

    /// Shows the state of a load.
    pub(crate) fn show(&mut self, report: &Report) {
        let text = match self.style {
            Progress::Line => {
                self.next = Instant::now() + LINE;
                self.observe(report);
                format!("{}\n", self.line(report))
            }
            _ => {
                self.next = Instant::now() + FRAME;
                self.observe(report);
                let lines = self.frame(report);
                // Lines longer than the terminal is wide are cut, not wrapped, so that the next frame begins right.
                let mut text = "\x1b[?7l".to_owned() + &self.back();
                for line in &lines {
                    text.push_str(&format!("{line}\x1b[K\r\n"));
                }
                self.drawn = lines.len();
                text + "\x1b[J\x1b[?7h"
            }
        };
        write(&text);
    }

    /// Takes the last frame away; what follows is the result.
    pub(crate) fn clear(&mut self) {
        if self.drawn > 0 {
            write(&format!("{}\x1b[J", self.back()));
            self.drawn = 0;
        }
    }

    fn back(&self) -> String {
        if self.drawn > 0 { format!("\x1b[{}A\r", self.drawn) } else { String::new() }
    }

    fn observe(&mut self, report: &Report) {
        if let Some((at, last)) = self.window.back()
            && report.elapsed > *at
        {
            let requests = report.total.requests() - last.requests();
            self.curve.push_back(requests as f64 / (report.elapsed - *at).as_secs_f64());
            if self.curve.len() > WIDTH {
                self.curve.pop_front();
            }
        }
        self.window.push_back((report.elapsed, report.total.clone()));
        let frames = if self.style == Progress::Line { 1 } else { WINDOW };
        while self.window.len() > frames + 1 {
            self.window.pop_front();
        }
    }

    /// What ended within the last second, and a second's worth of it.
    fn recent(&self, report: &Report) -> (Tally, f64) {
        let Some((at, earlier)) = self.window.front() else { return (report.total.clone(), report.rate()) };
        let recent = report.total.since(earlier);
        let seconds = report.elapsed.saturating_sub(*at).as_secs_f64();
        let rate = if seconds > 0.0 { recent.requests() as f64 / seconds } else { report.rate() };
        (recent, rate)
    }

    fn line(&self, report: &Report) -> String {
        let total = &report.total;
        let (recent, rate) = self.recent(report);
        format!(
            "{:>6.1} s  {} requests  {rate:.0}/s  {} failed  {} cut  last second p50 {}  p99 {}",
            report.elapsed.as_secs_f64(),
            total.requests(),
            total.failed(),
            total.cut(),
            show_duration(recent.quantile(0.5)),
            show_duration(recent.quantile(0.99)),
        )
    }

    fn frame(&self, report: &Report) -> Vec<String> {
        let total = &report.total;
        let (recent, rate) = self.recent(report);
        let errors = format!("{} failed, {} cut, {} unsent", total.failed(), total.cut(), report.unsent);
        let clean = total.failed() + total.cut() + report.unsent == 0;
        let mut lines = vec![
            format!("  {}", report.asked.arrivals),
            time(report),
            String::new(),
            format!("  {:<9} {:>10} /s   {}", "rate", format!("{rate:.0}"), self.paint("36", &sparkline(&self.curve))),
            format!(
                "  {:<9} {:>10}      {}",
                "requests",
                total.requests(),
                self.paint(if clean { "32" } else { "31" }, &errors)
            ),
            format!("  {:<9} {}", "status", statuses(total)),
            String::new(),
            format!("  {:<9} {:>9}  {:>9}  {:>9}  {:>9}  {:>9}", "latency", "p50", "p90", "p99", "p99.9", "max"),
            latencies("last second", &recent),
            latencies("all", total),
            String::new(),
        ];
        let busy = report.busiest_share;
        let generator = format!(
            "generator busy {:.0} %, its delay p99 {}",
            busy * 100.0,
            show_duration(report.delay_quantile(0.99))
        );
        lines.push(format!("  {}", if busy > 0.8 { self.paint("33", &generator) } else { generator }));
        lines
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn time(report: &Report) -> String {
    let elapsed = report.elapsed.as_secs_f64();
    match report.asked.duration {
        _ if report.elapsed.is_zero() && !report.asked.warm_up.is_zero() => "  warm-up".to_owned(),
        Some(duration) => {
            let share = (elapsed / duration.as_secs_f64()).min(1.0);
            let full = (share * WIDTH as f64).round() as usize;
            let bar = "█".repeat(full) + &"░".repeat(WIDTH - full);
            format!("  {elapsed:.1} of {:.0} s  {bar}", duration.as_secs_f64())
        }
        None => format!("  {elapsed:.1} s"),
    }
}

fn latencies(name: &str, tally: &Tally) -> String {
    let show = |share| show_duration(tally.quantile(share));
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(show);
    let max = show_duration(tally.slowest());
    format!("  {name:<11} {p50:>7}  {p90:>9}  {p99:>9}  {p999:>9}  {max:>9}")
}

fn statuses(tally: &Tally) -> String {
    let classes = (1..=5).map(|class| (class, tally.class(class))).filter(|(_, count)| *count > 0);
    let shown: Vec<_> = classes.map(|(class, count)| format!("{class}xx {count}")).collect();
    if shown.is_empty() { "-".to_owned() } else { shown.join("  ") }
}

/// A curve of one character a value, from nothing to the highest.
fn sparkline(values: &VecDeque<f64>) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = values.iter().copied().fold(1.0, f64::max);
    values.iter().map(|value| BLOCKS[((value / highest * 8.0) as usize).min(7)]).collect()
}

fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    // Nobody looks when standard error is gone.
    let _gone = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_rises_to_its_highest_value() {
        assert_eq!(sparkline(&[0.0, 25.0, 50.0, 100.0].into()), "▁▃▅█");
        assert_eq!(sparkline(&VecDeque::new()), "");
    }
}
