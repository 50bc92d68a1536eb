//! `make bench`: what the bot costs and how quick it is, measured side by side with Buildbot's own IRC reporter on
//! the same master. Prints a table and writes target/bench.json. `make bench ROWS=commands,memory` measures some.
//!
//! A figure that misses its aim is printed as missed; only what could not be measured is an error.

#[path = "../common/mod.rs"]
mod common;
mod irc_server;
mod origin;
mod rows;
mod subjects;

use serde_json::{Value, json};
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Milliseconds, the unit of most rows.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What is going on, for whoever waits.
fn progress(text: &str) {
    eprintln!("bench: {text} …");
}

/// One line of the table.
struct Row {
    group: &'static str,
    what: String,
    /// How many builders the master has; 0 where that does not matter.
    size: usize,
    unit: &'static str,
    values: Vec<f64>,
    /// The reporter's values for the same.
    reporter: Vec<f64>,
    aim: String,
    met: Option<bool>,
    note: String,
    more_is_better: bool,
}

impl Row {
    fn new(
        group: &'static str,
        what: &str,
        size: usize,
        unit: &'static str,
        values: Vec<f64>,
    ) -> Row {
        Row {
            group,
            what: what.to_string(),
            size,
            unit,
            values,
            reporter: Vec::new(),
            aim: String::new(),
            met: None,
            note: String::new(),
            more_is_better: false,
        }
    }

    fn reporter(mut self, reporter: Vec<f64>) -> Row {
        self.reporter = reporter;
        self
    }

    fn more_is_better(mut self) -> Row {
        self.more_is_better = true;
        self
    }

    /// What should be; a second aim is added to the first, and both must be met.
    fn aim(mut self, aim: &str, met: impl Fn(&Row) -> bool) -> Row {
        self.aim += if self.aim.is_empty() { "" } else { ", " };
        self.aim += aim;
        self.met = Some(self.met.unwrap_or(true) && !self.values.is_empty() && met(&self));
        self
    }

    fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }

    fn median(&self) -> f64 {
        quantile(&self.values, 0.5)
    }

    fn p95(&self) -> f64 {
        quantile(&self.values, 0.95)
    }

    /// How many times better than the reporter's our median is.
    fn ratio(&self) -> f64 {
        let ratio = quantile(&self.reporter, 0.5) / self.median();
        if self.more_is_better {
            1.0 / ratio
        } else {
            ratio
        }
    }

    /// As a line of the table.
    fn line(&self) -> String {
        let mut size = String::new();
        if self.size > 0 {
            size = self.size.to_string();
        }
        let mut ratio = String::new();
        if self.ratio().is_finite() {
            ratio = format!("{}x", number(self.ratio()));
        }
        let mut note = String::new();
        if !self.note.is_empty() {
            note = format!("  ({})", self.note);
        }
        let median = number(self.median());
        let p95 = number(self.p95());
        let reporter = number(quantile(&self.reporter, 0.5));
        let unit = self.unit;
        let figures = format!("{median:>9} {p95:>9} {unit:<7} {reporter:>9} {ratio:>8}");
        let verdict = self.verdict();
        let what = &self.what;
        let aim = &self.aim;
        format!("{what:<46} {size:>6} {figures}  {aim:<16} {verdict}{note}")
    }

    fn verdict(&self) -> &'static str {
        match self.met {
            _ if self.values.is_empty() => "NOT MEASURED",
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        }
    }

    fn json(&self) -> Value {
        let figures = |values: &[f64]| {
            if values.is_empty() {
                return Value::Null;
            }
            json!({"n": values.len(), "median": quantile(values, 0.5), "p95": quantile(values, 0.95)})
        };
        let ratio = Some(self.ratio()).filter(|ratio| ratio.is_finite());
        json!({
            "group": self.group, "what": self.what, "builders": self.size, "unit": self.unit,
            "bot": figures(&self.values), "reporter": figures(&self.reporter), "ratio": ratio,
            "aim": self.aim, "met": self.met, "note": self.note,
        })
    }
}

/// The nearest rank; not a number where there are no values.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value {
        _ if !value.is_finite() => "-".to_string(),
        _ if value.fract() == 0.0 || value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Writes what there is so far: a later row that ends in a panic must not cost the earlier ones.
fn write(rows: &[Row]) {
    let all: Vec<Value> = rows.iter().map(Row::json).collect();
    let commit = origin::commit();
    let report = json!({"commit": commit, "machine": origin::machine(), "rows": all});
    let text = serde_json::to_string_pretty(&report).expect("plain values");
    let file = common::root().join("target/bench.json");
    fs::write(file, text + "\n").expect("target can be written");
}

/// The groups that `$ROWS` names, or all of them.
fn wanted_groups() -> Result<Vec<(&'static str, rows::Measure)>, String> {
    let text = std::env::var("ROWS").unwrap_or_default();
    let mut wanted: Vec<&str> = text.split([',', ' ']).collect();
    wanted.retain(|name| !name.is_empty());
    let known = rows::GROUPS.map(|(name, _)| name);
    if let Some(name) = wanted.iter().find(|name| !known.contains(name)) {
        return Err(format!("no rows {name}; there are {}", known.join(",")));
    }
    let mut groups = rows::GROUPS.to_vec();
    groups.retain(|(name, _)| wanted.is_empty() || wanted.contains(name));
    Ok(groups)
}

fn main() -> ExitCode {
    let groups = match wanted_groups() {
        Ok(groups) => groups,
        Err(e) => {
            eprintln!("bench: {e}");
            return ExitCode::from(64);
        }
    };
    println!(
        "{:<48} {:>6} {:>9} {:>9} {:<7} {:>9} {:>8}  aim",
        "", "size", "median", "p95", "", "reporter", "ratio"
    );
    let mut bench = rows::Bench::new();
    let start = Instant::now();
    let mut all: Vec<Row> = Vec::new();
    for (name, measure) in groups {
        println!("{name}, after {} s", start.elapsed().as_secs());
        let rows = measure(&mut bench);
        for row in &rows {
            println!("  {}", row.line());
        }
        all.extend(rows);
        write(&all);
    }
    let unmeasured = all.iter().filter(|row| row.values.is_empty()).count();
    let is_missed = |row: &&Row| row.met == Some(false) && !row.values.is_empty();
    let missed = all.iter().filter(is_missed).count();
    let seconds = start.elapsed().as_secs();
    println!(
        "\n{} rows in {seconds} s, {missed} missed, {unmeasured} not measured; also in target/bench.json",
        all.len()
    );
    ExitCode::from(u8::from(unmeasured > 0))
}
