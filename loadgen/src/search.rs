//! The highest rate that keeps an objective: doubled until it does not hold, then halved into. Pure decisions; who runs
//! the loads tells what came of each.

/// How close the two ends must be, as a ratio.
const PRECISION: f64 = 1.05;

/// A search that is under way.
#[derive(Clone, Debug)]
pub struct Search {
    lowest: f64,
    highest: f64,
    /// The highest rate that held.
    held: Option<f64>,
    /// The lowest rate that did not hold, twice.
    broke: Option<f64>,
    /// A rate that did not hold once: chance has one try.
    doubtful: Option<f64>,
}

/// What a search has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The highest rate that held.
    pub held: Option<f64>,
    /// The lowest rate that did not.
    pub broke: Option<f64>,
}

impl Search {
    /// Between these rates.
    pub fn new(lowest: f64, highest: f64) -> Self {
        Self { lowest, highest, held: None, broke: None, doubtful: None }
    }

    /// The rate to try next. None: it is known well enough.
    pub fn next(&self) -> Option<f64> {
        if let Some(again) = self.doubtful {
            return Some(again);
        }
        match (self.held, self.broke) {
            (None, None) => Some(self.lowest),
            // Not even the lowest one.
            (None, Some(_)) => None,
            (Some(held), None) if held >= self.highest => None,
            (Some(held), None) => Some(rounded((held * 2.0).min(self.highest))),
            (Some(held), Some(broke)) => {
                // The middle by ratio: 100 and 10,000 are as far from 1,000.
                let middle = rounded((held * broke).sqrt());
                (broke / held > PRECISION && middle > held && middle < broke).then_some(middle)
            }
        }
    }

    /// What came of the rate that [`Self::next`] gave.
    pub fn tell(&mut self, rate: f64, holds: bool) {
        match (holds, self.doubtful) {
            (true, _) => {
                self.held = Some(self.held.map_or(rate, |held| held.max(rate)));
                self.doubtful = None;
            }
            (false, None) => self.doubtful = Some(rate),
            (false, Some(_)) => {
                self.broke = Some(self.broke.map_or(rate, |broke| broke.min(rate)));
                self.doubtful = None;
            }
        }
    }

    /// What is known so far.
    pub fn found(&self) -> Found {
        Found { held: self.held, broke: self.broke.or(self.doubtful) }
    }
}

/// Three digits that matter: nobody wants to try 1,414.2135 requests a second.
fn rounded(rate: f64) -> f64 {
    let unit = 10_f64.powf(rate.log10().floor() - 2.0);
    (rate / unit).round() * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches where rates up to `capacity` hold; every `flaky`-th try fails by chance.
    fn search(lowest: f64, highest: f64, capacity: f64, flaky: usize) -> (Found, usize) {
        let mut search = Search::new(lowest, highest);
        let mut tries = 0;
        while let Some(rate) = search.next() {
            tries += 1;
            assert!(tries < 100, "it does not end at {rate}");
            search.tell(rate, rate <= capacity && tries % flaky != 0);
        }
        (search.found(), tries)
    }

    #[test]
    fn the_highest_rate_is_found_to_five_percent() {
        for capacity in [100.0, 137.0, 5_000.0, 99_000.0] {
            for flaky in [usize::MAX, 5] {
                let (found, tries) = search(10.0, 100_000.0, capacity, flaky);
                let held = found.held.unwrap();
                assert!(held <= capacity && held * 1.055 >= capacity, "{capacity}: {found:?}");
                assert!(tries <= 30, "{capacity}: {tries} tries");
            }
        }
    }

    #[test]
    fn ends_of_the_range_are_answers_too() {
        assert_eq!(search(100.0, 1_000.0, 5_000.0, usize::MAX).0, Found { held: Some(1_000.0), broke: None });
        assert_eq!(search(100.0, 1_000.0, 50.0, usize::MAX).0, Found { held: None, broke: Some(100.0) });
        assert_eq!(search(100.0, 100.0, 500.0, usize::MAX).0, Found { held: Some(100.0), broke: None });
    }
}
