//! The bot: the built binary as a process with a configuration of its own.

use super::{Process, TIMEOUT, collect, guarded, root, scratch, spawn, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// The program under test. Cargo builds none for the examples (demo, bench): they take the release build.
pub fn binary() -> String {
    match option_env!("CARGO_BIN_EXE_buildbot-irc") {
        Some(path) => path.to_string(),
        None => root()
            .join("target/release/buildbot-irc")
            .display()
            .to_string(),
    }
}

/// A running bot; dropped, it is asked to end.
pub struct Bot {
    /// Its working directory, where a relative `state_file` lands.
    pub dir: PathBuf,
    /// Shell that prepares a mount namespace for it; empty: it runs in ours.
    setup: String,
    process: Process,
}

/// How a run that ended by itself went. A signal is code -1.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Bot {
    /// Writes bot.conf to a new directory and runs `buildbot-irc -c bot.conf -v` there.
    pub fn start(config: &str) -> Bot {
        Bot::start_in(&scratch("bot"), config)
    }

    /// The same in the directory of an earlier bot, whose state file it finds.
    pub fn start_in(dir: &Path, config: &str) -> Bot {
        Bot::launch(dir.to_path_buf(), "", config)
    }

    /// In a mount namespace of its own, which these lines of shell prepare in its working directory.
    #[track_caller]
    pub fn start_within(setup: &str, config: &str) -> Bot {
        let tried = Command::new("unshare")
            .args(["--map-root-user", "--mount", "true"])
            .output();
        assert!(
            tried.is_ok_and(|out| out.status.success()),
            "`unshare --map-root-user --mount true` fails: run this test as root, or allow user namespaces"
        );
        Bot::launch(scratch("bot"), setup, config)
    }

    fn launch(dir: PathBuf, setup: &str, config: &str) -> Bot {
        write_config(&dir, config);
        let process = launch(&dir, setup);
        Bot {
            dir,
            setup: setup.to_string(),
            process,
        }
    }

    /// Ends it if it still runs and starts it again: same directory, same configuration, new log.
    pub fn start_again(&mut self) {
        self.process.terminate();
        self.process = launch(&self.dir, &self.setup);
    }

    /// Replaces bot.conf; the bot reads it on HUP or when started again.
    pub fn configure(&self, config: &str) {
        write_config(&self.dir, config);
    }

    /// Waits until the bot is in its configured channels and knows which builds are old: it has the event stream, or
    /// its second poll has begun if it has none.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let config = fs::read_to_string(self.dir.join("bot.conf")).unwrap();
        self.expect_log_times("IRC: joined", config.matches("[channel ").count());
        if config.contains("event_stream = no") {
            self.expect_log_times("GET /api/v2/buildrequests", 2);
        } else {
            self.wait_subscribed(1);
        }
    }

    /// Waits until it has subscribed to the event stream this many times.
    #[track_caller]
    pub fn wait_subscribed(&mut self, times: usize) {
        self.expect_log_times("event stream: subscribed", times);
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Waits until the log holds this text, anywhere: threads log in no certain order.
    #[track_caller]
    pub fn expect_log(&mut self, text: &str) {
        self.expect_log_times(text, 1);
    }

    /// Waits until it holds the text at least this many times.
    #[track_caller]
    pub fn expect_log_times(&mut self, text: &str, times: usize) {
        let what = format!("{text:?}, {times} times, in the log");
        self.process.wait_for(&what, TIMEOUT, |process| {
            (process.output().matches(text).count() >= times).then_some(())
        });
    }

    /// The log holds the text exactly this many times: its last lines may still be on their way.
    #[track_caller]
    pub fn assert_logged(&self, text: &str, times: usize) {
        wait_for(&format!("{text:?} in the log"), TIMEOUT, || {
            (self.log().matches(text).count() >= times).then_some(())
        });
        let count = self.log().matches(text).count();
        assert_eq!(count, times, "{text:?} in the log:\n{}", self.log());
    }

    /// The log holds the text nowhere.
    #[track_caller]
    pub fn assert_not_logged(&self, text: &str) {
        let log = self.log();
        assert!(!log.contains(text), "{text:?} in the log:\n{log}");
    }

    /// Waits until its state file `state` is as the closure wants it.
    #[track_caller]
    pub fn wait_state(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let file = self.dir.join("state");
        wait_for(what, TIMEOUT, || wanted(&read_state(&file)?).then_some(()));
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The most memory that it ever had, in kB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let mut lines = status.lines();
        let peak = lines.find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// HUP, STOP, CONT …
    pub fn signal(&mut self, name: &str) {
        self.process.signal(name);
    }

    /// Sends HUP and waits until it has taken over bot.conf.
    #[track_caller]
    pub fn reload(&mut self) {
        self.signal("HUP");
        self.expect_log("configuration read again");
    }

    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; returns the exit code, -1 if it had to be killed.
    pub fn terminate(&mut self) -> i32 {
        self.process.terminate().code().unwrap_or(-1)
    }

    /// Asks it to end, which it does with code 0.
    #[track_caller]
    pub fn stop(&mut self) {
        assert_eq!(self.terminate(), 0, "{}", self.log());
    }

    /// Its exit code, if it has ended.
    pub fn try_exit(&mut self) -> Option<i32> {
        Some(self.process.exited()?.code().unwrap_or(-1))
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self) -> i32 {
        self.process.wait_exit().code().unwrap_or(-1)
    }

    /// It ends by itself with this code.
    #[track_caller]
    pub fn expect_exit(&mut self, code: i32) {
        assert_eq!(self.wait_exit(), code, "{}", self.log());
    }

    /// Runs the program in `dir` until it ends by itself.
    #[track_caller]
    pub fn run(dir: &Path, args: &[&str]) -> Finished {
        run(&binary(), dir, args)
    }
}

/// Runs a program in `dir` until it ends by itself.
#[track_caller]
pub fn run(program: &str, dir: &Path, args: &[&str]) -> Finished {
    let mut command = guarded(program);
    command
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command);
    let stdout = Arc::<Mutex<String>>::default();
    let stderr = Arc::<Mutex<String>>::default();
    let readers = [
        collect(child.stdout.take().unwrap(), &stdout),
        collect(child.stderr.take().unwrap(), &stderr),
    ];
    let Some(status) = wait_child(&mut child) else {
        let stderr = stderr.lock().unwrap();
        panic!("{program} {args:?} does not end; it wrote:\n{stderr}");
    };
    for reader in readers {
        reader.join().unwrap();
    }
    Finished {
        code: status.code().unwrap_or(-1),
        stdout: std::mem::take(&mut *stdout.lock().unwrap()),
        stderr: std::mem::take(&mut *stderr.lock().unwrap()),
    }
}

/// Waits for a child to end; kills it if it does not in time.
fn wait_child(child: &mut Child) -> Option<ExitStatus> {
    let end = std::time::Instant::now() + 3 * TIMEOUT;
    let status = wait_for("the end of a program", 4 * TIMEOUT, || {
        let status = child.try_wait().unwrap();
        let late = std::time::Instant::now() > end;
        (status.is_some() || late).then_some(status)
    });
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    status
}

/// The JSON of a state file, below the line with its version; `None` if there is no such file yet.
pub fn read_state(file: &Path) -> Option<Value> {
    let text = fs::read_to_string(file).ok()?;
    let (_, json) = text.split_once('\n')?;
    serde_json::from_str(json).ok()
}

/// A new directory with this bot.conf.
pub fn config_dir(config: &str) -> PathBuf {
    let dir = scratch("config");
    write_config(&dir, config);
    dir
}

/// Writes bot.conf with mode 0600.
pub fn write_config(dir: &Path, config: &str) {
    let file = dir.join("bot.conf");
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn launch(dir: &Path, setup: &str) -> Process {
    let mut command;
    if setup.is_empty() {
        command = guarded(binary());
    } else {
        let script = format!("set -e; {setup}; exec \"$@\"");
        command = guarded("unshare");
        command
            .args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .arg(binary());
    }
    command.args(["-c", "bot.conf", "-v"]).current_dir(dir);
    Process::start("bot", command)
}
