//! The figures, their medians, and how they are shown.

use std::fmt;

use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use crate::{
    contestant::{Contestant, OURS},
    ground::Underlay,
    measuring::summary::{median, surroundings},
};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    Tcp1,
    Tcp1Reverse,
    Tcp4,
    Tcp4Reverse,
    Udp1372,
    Udp64,
    PingIdleMedian,
    PingIdleHigh,
    PingLoadedMedian,
    PingLoadedHigh,
    MachineTime,
    TunnelTime,
    Memory,
    /// Work of other programs, which spoils all other figures.
    OtherWork,
}

/// Which figure is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
    /// It says nothing about the program that was measured.
    Neither,
}

impl Better {
    /// How many times better our figure is.
    fn ratio(self, ours: f64, theirs: f64) -> Option<f64> {
        match self {
            Self::More => Some(ours / theirs),
            Self::Less => Some(theirs / ours),
            Self::Neither => None,
        }
    }
}

impl Metric {
    /// Its label, its digits after the decimal point, and what is better.
    fn about(self) -> (&'static str, usize, Better) {
        match self {
            Self::Tcp1 => ("TCP, 1 stream, Gbit/s", 2, Better::More),
            Self::Tcp1Reverse => ("TCP, 1 stream, the other way", 2, Better::More),
            Self::Tcp4 => ("TCP, 4 streams", 2, Better::More),
            Self::Tcp4Reverse => ("TCP, 4 streams, the other way", 2, Better::More),
            Self::Udp1372 => ("UDP, 1,372 bytes, thousands a second with < 1 % lost", 0, Better::More),
            Self::Udp64 => ("UDP, 64 bytes, thousands a second with < 1 % lost", 0, Better::More),
            Self::PingIdleMedian => ("ping, idle, p50, µs", 0, Better::Less),
            Self::PingIdleHigh => ("ping, idle, p99, µs", 0, Better::Less),
            Self::PingLoadedMedian => ("ping beside 1 TCP stream, p50, µs", 0, Better::Less),
            Self::PingLoadedHigh => ("ping beside 1 TCP stream, p99, µs", 0, Better::Less),
            Self::MachineTime => ("CPU of the whole machine, ms for each Gbit of 1 stream", 0, Better::Less),
            Self::TunnelTime => ("CPU of both tunnel ends, ms for each Gbit of 1 stream", 0, Better::Less),
            Self::OtherWork => ("other work on the machine just before, % of a CPU", 0, Better::Neither),
            Self::Memory => ("memory of one end, MiB resident after all that", 1, Better::Less),
        }
    }

    /// Whether a contestant has this figure: the bare cable has no processes.
    pub(crate) fn concerns(self, contestant: &Contestant) -> bool {
        contestant.command.is_some() || !matches!(self, Self::TunnelTime | Self::Memory)
    }

    pub(crate) fn label(self) -> &'static str {
        self.about().0
    }
}

/// One figure, or the reason why there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) underlay: Underlay,
    pub(crate) name: String,
    pub(crate) metric: Metric,
    pub(crate) value: Result<f64, String>,
}

/// The medians in Markdown: a table for each kind of cable.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    samples: &'a [Sample],
    /// The programs, in the order in which they were first measured.
    names: Vec<&'a str>,
}

/// The result of all rounds for one cell of the table.
#[derive(Debug, Clone, Copy)]
enum Cell<'a> {
    Figure(f64),
    /// The reason why there is no figure.
    Failed(&'a str),
    NotMeasured,
}

impl<'a> Table<'a> {
    pub(crate) fn new(samples: &'a [Sample]) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for sample in samples {
            if !names.contains(&sample.name.as_str()) {
                names.push(&sample.name);
            }
        }
        Self { samples, names }
    }

    fn cell(&self, underlay: Underlay, name: &str, metric: Metric) -> Cell<'a> {
        let samples = self.samples.iter();
        let here = samples.filter(|it| (it.underlay, it.metric) == (underlay, metric) && it.name == name);
        let mut figures: Vec<f64> = Vec::new();
        let mut failure = None;
        for sample in here {
            match &sample.value {
                Ok(figure) => figures.push(*figure),
                Err(reason) => failure = Some(reason.as_str()),
            }
        }
        match (median(&mut figures), failure) {
            // The median of the rounds that succeeded would look better than the truth.
            (_, Some(reason)) => Cell::Failed(reason),
            (Some(median), None) => Cell::Figure(median),
            (None, None) => Cell::NotMeasured,
        }
    }

    fn rounds(&self) -> usize {
        let alike = |one: &Sample| {
            let same =
                |it: &&Sample| (it.underlay, it.metric, &it.name) == (one.underlay, one.metric, &one.name);
            self.samples.iter().filter(same).count()
        };
        self.samples.iter().map(alike).max().unwrap_or(0)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, underlay: Underlay) -> fmt::Result {
        let compared = |name: &str| self.names.contains(&OURS) && Contestant::is_compared(name);
        write!(f, "| underlay {underlay} |")?;
        for name in &self.names {
            write!(f, " {name} |{}", if compared(name) { " × |" } else { "" })?;
        }
        write!(f, "\n|---|")?;
        for name in &self.names {
            write!(f, "--:|{}", if compared(name) { "--:|" } else { "" })?;
        }
        writeln!(f)?;
        let mut failures: Vec<String> = Vec::new();
        for metric in Metric::value_variants() {
            let (label, digits, better) = metric.about();
            let cells: Vec<_> = self.names.iter().map(|name| self.cell(underlay, name, *metric)).collect();
            if cells.iter().all(|cell| matches!(cell, Cell::NotMeasured)) {
                continue;
            }
            write!(f, "| {label} |")?;
            let ours = self.cell(underlay, OURS, *metric);
            for (name, cell) in self.names.iter().zip(cells) {
                match cell {
                    Cell::Figure(figure) => write!(f, " {figure:.digits$} |")?,
                    Cell::NotMeasured => write!(f, " |")?,
                    Cell::Failed(reason) => {
                        let failure = format!("{name}: {reason}");
                        let known = failures.iter().position(|other| *other == failure);
                        let number = known.unwrap_or_else(|| {
                            failures.push(failure);
                            failures.len() - 1
                        });
                        write!(f, " failed ({}) |", number + 1)?;
                    }
                }
                let ratio = match (cell, ours) {
                    (Cell::Figure(theirs), Cell::Figure(ours)) => better.ratio(ours, theirs),
                    _ => None,
                };
                match ratio {
                    _ if !compared(name) => {}
                    Some(ratio) => write!(f, " {ratio:.2} |")?,
                    None => write!(f, " |")?,
                }
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for (number, failure) in (1..).zip(failures) {
            writeln!(f, "{number}. {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}. Both ends and the load on this machine; MTU 1420, reno; medians of {}; \
             × is how many times better `{OURS}` is.",
            surroundings(),
            self.rounds()
        )?;
        for underlay in Underlay::value_variants() {
            if self.samples.iter().any(|sample| sample.underlay == *underlay) {
                writeln!(f)?;
                self.write(f, *underlay)?;
            }
        }
        Ok(())
    }
}
