//! Pictures of the tables: a bar for each contender, as long as an operation takes CPU time.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::Record;

const WIDTH: i32 = 760;
const LEFT: i32 = 190;
const RIGHT: i32 = 90;
const TOP: i32 = 44;
const BAR: i32 = 22;
const STEP: i32 = 32;

/// Draws one bar for each record that has a figure, with the middle half of the rounds as a line. Without any, there is no
/// picture.
///
/// # Errors
/// If the file cannot be written.
pub fn bars(file: &Path, title: &str, records: &[Record]) -> anyhow::Result<()> {
    let bars: Vec<(&Record, f64)> = records.iter().filter_map(|one| Some((one, one.cpu_us_per_op?))).collect();
    let half = |record: &Record| record.cpu_us_spread.unwrap_or(0.0) / 2.0;
    let Some(longest) = bars.iter().map(|(record, cpu)| cpu + half(record)).reduce(f64::max) else { return Ok(()) };
    let height = TOP + STEP * bars.len() as i32 + 8;
    let area = SVGBackend::new(file, (WIDTH as u32, height as u32)).into_drawing_area();
    let failed = |error| anyhow!("cannot draw {}: {error}", file.display());
    area.fill(&WHITE).map_err(failed)?;
    let style =
        |size: i32, horizontal| ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(horizontal, VPos::Center));
    let heading = format!("{title}: CPU time of all processes for one {}, µs", bars[0].0.operation);
    area.draw(&Text::new(heading, (12, TOP / 2), style(16, HPos::Left))).map_err(failed)?;
    let place = |value: f64| LEFT + (value / longest * f64::from(WIDTH - LEFT - RIGHT)) as i32;
    for (row, (record, cpu)) in bars.iter().enumerate() {
        let top = TOP + STEP * row as i32;
        let middle = top + BAR / 2;
        let colour =
            if record.proxy.starts_with("ringmesh") { RGBColor(0x1f, 0x6f, 0xb4) } else { RGBColor(0xa8, 0xb0, 0xb8) };
        area.draw(&Text::new(record.proxy.clone(), (LEFT - 10, middle), style(14, HPos::Right))).map_err(failed)?;
        let bar = Rectangle::new([(LEFT, top), (place(*cpu), top + BAR)], colour.filled());
        area.draw(&bar).map_err(failed)?;
        let whisker = vec![(place(cpu - half(record)), middle), (place(cpu + half(record)), middle)];
        area.draw(&PathElement::new(whisker, BLACK)).map_err(failed)?;
        let end = place(cpu + half(record)) + 8;
        area.draw(&Text::new(format!("{cpu:.1}"), (end, middle), style(14, HPos::Left))).map_err(failed)?;
    }
    area.present().map_err(failed)
}
