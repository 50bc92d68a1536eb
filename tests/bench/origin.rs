//! Where figures and pictures come from: the commit and the machine.

use super::common::root;
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// The commit, with `-dirty` behind it where files differ from it; empty outside a checkout.
pub fn commit() -> String {
    output("git", &["describe", "--always", "--dirty"])
}

/// The machine, for the reader of the figures.
pub fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = cpuinfo.lines();
    let cpu = lines.find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.unwrap_or("").trim_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let kernel = output("uname", &["-sr"]);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({"cpu": cpu, "cores": cores, "kernel": kernel, "load": load.trim()})
}

/// What a program prints; nothing if it fails.
fn output(program: &str, args: &[&str]) -> String {
    let done = Command::new(program)
        .args(args)
        .current_dir(root())
        .output();
    match done {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_string(),
        _ => String::new(),
    }
}
