//! The bot: the built binary as a process with a configuration of its own.

use super::{Process, TIMEOUT, collect, guarded, scratch, spawn};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// A running bot; dropped, it is asked to end.
pub struct Bot {
    /// Its working directory, where a relative `state_file` lands.
    pub dir: PathBuf,
    binary: String,
    /// Shell that prepares a mount namespace for it; empty: it runs in ours.
    setup: String,
    process: Process,
}

/// How a one-shot run ended. A signal is code -1.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Bot {
    /// Writes bot.conf (mode 0600) to a new directory and runs `binary -c bot.conf -v` there. `binary` is
    /// `env!("CARGO_BIN_EXE_buildbot-irc")`, which only the test file itself can name.
    pub fn start(binary: &str, config: &str) -> Bot {
        Bot::start_in(&scratch("bot"), binary, config)
    }

    /// The same in a directory of an earlier bot, whose state file it finds.
    pub fn start_in(dir: &Path, binary: &str, config: &str) -> Bot {
        Bot::launch(dir.to_path_buf(), binary, "", config)
    }

    /// In a mount namespace of its own, which these lines of shell prepare in its working directory.
    #[track_caller]
    pub fn start_within(setup: &str, binary: &str, config: &str) -> Bot {
        let tried = Command::new("unshare")
            .args(["--map-root-user", "--mount", "true"])
            .output();
        let may = tried.is_ok_and(|out| out.status.success());
        assert!(
            may,
            "`unshare --map-root-user --mount true` fails: run this test as root, or allow user namespaces"
        );
        Bot::launch(scratch("bot"), binary, setup, config)
    }

    fn launch(dir: PathBuf, binary: &str, setup: &str, config: &str) -> Bot {
        configure(&dir, config);
        let process = launch(&dir, binary, setup);
        Bot {
            dir,
            binary: binary.to_string(),
            setup: setup.to_string(),
            process,
        }
    }

    /// Starts it again after it has ended, or ends it first: same directory, same configuration, new log.
    pub fn start_again(&mut self) {
        self.process.terminate();
        self.process = launch(&self.dir, &self.binary, &self.setup);
    }

    /// Replaces bot.conf; the bot reads it on HUP or when started again.
    pub fn configure(&self, config: &str) {
        configure(&self.dir, config);
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

    /// Waits until it holds the text at least so many times.
    #[track_caller]
    pub fn expect_log_times(&mut self, text: &str, times: usize) {
        let what = format!("{text:?}, {times} times, in the log");
        self.process.wait_for(&what, TIMEOUT, |process| {
            (process.output().matches(text).count() >= times).then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// HUP, STOP, CONT …
    pub fn signal(&mut self, name: &str) {
        self.process.signal(name);
    }

    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; returns the exit code, -1 if it had to be killed.
    pub fn terminate(&mut self) -> i32 {
        self.process.terminate().code().unwrap_or(-1)
    }

    /// Its exit code, if it has ended.
    pub fn try_exit(&mut self) -> Option<i32> {
        Some(self.process.exited()?.code().unwrap_or(-1))
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self) -> i32 {
        let status = super::wait_for("the bot to end", TIMEOUT, || self.process.exited());
        status.code().unwrap_or(-1)
    }

    /// A run that ends by itself, in `dir`; what `input` holds is its standard input.
    #[track_caller]
    pub fn run(dir: &Path, binary: &str, args: &[&str], input: &str) -> Finished {
        let mut command = guarded(binary);
        command
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command);
        let (stdout, stderr) = (
            Arc::<Mutex<String>>::default(),
            Arc::<Mutex<String>>::default(),
        );
        let readers = [
            collect(child.stdout.take().unwrap(), &stdout),
            collect(child.stderr.take().unwrap(), &stderr),
        ];
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // it may have no use for it
        let end = std::time::Instant::now() + 3 * TIMEOUT;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if std::time::Instant::now() > end => {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!(
                        "{binary} {args:?} does not end; it wrote:\n{}",
                        stderr.lock().unwrap()
                    );
                }
                None => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
        let take = |text: &Mutex<String>| std::mem::take(&mut *text.lock().unwrap());
        Finished {
            code: status.code().unwrap_or(-1),
            stdout: take(&stdout),
            stderr: take(&stderr),
        }
    }
}

fn configure(dir: &Path, config: &str) {
    let file = dir.join("bot.conf");
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn launch(dir: &Path, binary: &str, setup: &str) -> Process {
    let mut command = guarded(if setup.is_empty() { binary } else { "unshare" });
    if !setup.is_empty() {
        let script = format!("set -e; {setup}; exec \"$@\"");
        command.args([
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
            "sh",
            binary,
        ]);
    }
    command.args(["-c", "bot.conf", "-v"]).current_dir(dir);
    Process::start("bot", command)
}
