//! How far a download is: bars on a terminal, plain lines elsewhere, silence on request.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, MultiProgress, ProgressBar, ProgressStyle};

/// Where progress is shown. Cheap to clone; several downloads may share one.
#[derive(Clone, Debug)]
pub struct Progress(Show);

#[derive(Clone, Debug)]
enum Show {
    Bars(MultiProgress),
    Lines,
    Nothing,
}

/// One thing that is under way, counted in bytes.
#[derive(Debug)]
pub struct Stage {
    label: String,
    total: u64,
    done: AtomicU64,
    show: StageShow,
}

#[derive(Debug)]
enum StageShow {
    Bar(ProgressBar),
    /// `next`: the count at which the next line is due.
    Lines {
        next: AtomicU64,
        start: Instant,
    },
    Nothing,
}

impl Progress {
    /// Bars when standard error is a terminal, a line for each tenth otherwise.
    pub fn stderr() -> Self {
        if std::io::stderr().is_terminal() {
            Self(Show::Bars(MultiProgress::new()))
        } else {
            Self(Show::Lines)
        }
    }

    pub fn quiet() -> Self {
        Self(Show::Nothing)
    }

    /// Says something that is worth knowing, without disturbing the bars.
    pub fn note(&self, line: &str) {
        match &self.0 {
            // A closed terminal is no reason to stop a download.
            Show::Bars(bars) => drop(bars.println(line)),
            Show::Lines => eprintln!("{line}"),
            Show::Nothing => {}
        }
    }

    pub fn stage(&self, label: &str, total: u64) -> Stage {
        let show = match &self.0 {
            Show::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(total).with_message(label.to_owned()));
                bar.set_style(style());
                bar.enable_steady_tick(Duration::from_millis(250));
                StageShow::Bar(bar)
            }
            Show::Lines => {
                eprintln!("{label}: {}", DecimalBytes(total));
                StageShow::Lines { next: AtomicU64::new(total.div_ceil(10)), start: Instant::now() }
            }
            Show::Nothing => StageShow::Nothing,
        };
        Stage { label: label.to_owned(), total, done: AtomicU64::new(0), show }
    }
}

impl Stage {
    pub fn add(&self, bytes: u64) {
        self.set(self.done.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    pub fn set(&self, bytes: u64) {
        self.done.store(bytes, Ordering::Relaxed);
        match &self.show {
            StageShow::Bar(bar) => bar.set_position(bytes),
            StageShow::Lines { next, start } => self.line(bytes, next, *start),
            StageShow::Nothing => {}
        }
    }

    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn line(&self, bytes: u64, next: &AtomicU64, start: Instant) {
        let due = next.load(Ordering::Relaxed);
        let tenth = self.total.div_ceil(10).max(1);
        let following = (bytes / tenth + 1) * tenth;
        if bytes < due || next.compare_exchange(due, following, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let percent = (100 * bytes).checked_div(self.total).unwrap_or(100).min(100);
        let rate = bytes as f64 / start.elapsed().as_secs_f64().max(0.001);
        eprintln!(
            "{}: {percent:3} % of {}, {}/s",
            self.label,
            DecimalBytes(self.total),
            DecimalBytes(rate as u64)
        );
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let StageShow::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:28} {bar:30} {decimal_bytes:>10} of {decimal_total_bytes:>10}  {decimal_bytes_per_sec:>11}  {eta:>4} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_counts_what_it_is_told() {
        let progress = Progress(Show::Lines);
        let stage = progress.stage("x", 100);
        stage.add(30);
        stage.add(15);
        assert_eq!(stage.done(), 45);
        stage.set(10);
        stage.add(90);
        assert_eq!(stage.done(), 100);
    }

    #[test]
    fn lines_come_once_a_tenth_and_survive_a_total_of_zero() {
        let next = AtomicU64::new(10);
        let stage =
            Stage { label: "x".into(), total: 100, done: AtomicU64::new(0), show: StageShow::Nothing };
        for (bytes, due_after) in [(5, 10), (10, 20), (11, 20), (57, 60), (100, 110)] {
            stage.line(bytes, &next, Instant::now());
            assert_eq!(next.load(Ordering::Relaxed), due_after, "at {bytes}");
        }
        Progress(Show::Lines).stage("empty", 0).add(0);
    }

    #[test]
    fn the_template_is_valid() {
        ProgressStyle::with_template("{msg:28} {decimal_bytes_per_sec:>11} {eta:>4}").unwrap();
    }
}
