//! Child processes: started under guard, their output kept, ended with the test.

use super::{Pause, START, TIMEOUT, tool, wait_for};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);

/// A command that the kernel kills when this test process dies, however that happens.
pub fn guarded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(tool("setpriv"));
    // InspIRCd leaves a core file wherever it ends badly.
    command
        .args(["--pdeathsig", "KILL", "--", "prlimit", "--core=0", "--"])
        .arg(program);
    command
}

/// A guarded command for daemons that dislike root: as root they change their user (ngIRCd, which undoes the
/// guard and the access to its files) or nap for three seconds (Anope). In a user namespace they do not run as root.
pub fn daemon(name: &str) -> Command {
    static NAMESPACE: OnceLock<bool> = OnceLock::new();
    let namespace = *NAMESPACE.get_or_init(|| {
        let id = Command::new("unshare")
            .args(["--user", "--", "id", "-u"])
            .output();
        is_root() && id.is_ok_and(|out| out.status.success())
    });
    if !namespace {
        return guarded(tool(name));
    }
    let mut command = guarded("unshare");
    command.args(["--user", "--"]).arg(tool(name));
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Starts a child from one thread that lives as long as the process: the parent-death signal is sent when the
/// *thread* ends that forked, and the thread of a test may end before the process it shares with other tests.
pub fn spawn(command: Command) -> Child {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, work) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in work {
                let _ = reply.send(command.spawn());
            }
        });
        jobs
    });
    let text = format!("{command:?}");
    let (reply, answer) = channel();
    spawner.send((command, reply)).unwrap();
    answer
        .recv()
        .unwrap()
        .unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A child process whose output is kept; dropped, it is ended and reaped.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
    readers: [thread::JoinHandle<()>; 2],
}

impl Process {
    /// Runs a command made by [`guarded`] or [`daemon`].
    pub fn start(name: &str, mut command: Command) -> Process {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command);
        let output = Arc::default();
        let readers = [
            collect(child.stdout.take().unwrap(), &output),
            collect(child.stderr.take().unwrap(), &output),
        ];
        Process {
            name: name.to_string(),
            child,
            output,
            readers,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Its status if it has ended; then its output is complete.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap()?;
        let end = Instant::now() + Duration::from_secs(2); // a grandchild may hold the pipe open
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        Some(status)
    }

    /// Sends a signal (TERM, HUP, STOP …) unless the process has ended.
    pub fn signal(&mut self, name: &str) {
        if self.exited().is_none() {
            let kill = format!("kill -{name} {}", self.child.id());
            Command::new("sh").args(["-c", &kill]).status().unwrap();
        }
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_for(&what, TIMEOUT, || self.exited())
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> ExitStatus {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.exited().unwrap()
    }

    /// SIGTERM, and SIGKILL if that does not end it in time.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        let end = Instant::now() + GRACE;
        let mut pause = Pause::default();
        while Instant::now() < end {
            if let Some(status) = self.exited() {
                return status;
            }
            pause.take();
        }
        self.kill()
    }

    /// Polls until the closure has a value; fails early, with the output, if the process ends before.
    #[track_caller]
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut poll: impl FnMut(&mut Process) -> Option<T>,
    ) -> T {
        let end = Instant::now() + limit;
        let mut pause = Pause::default();
        loop {
            let ended = self.exited(); // before polling, or the last output would be missed
            if let Some(value) = poll(self) {
                return value;
            }
            if ended.is_some() || Instant::now() > end {
                panic!("{}: waited for {what}; exit status {ended:?}", self.name);
            }
            pause.take();
        }
    }

    /// Waits until somebody listens on a port of 127.0.0.1.
    #[track_caller]
    pub fn wait_port(&mut self, port: u16) {
        self.wait_for(&format!("port {port}"), START, |_| {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
        if thread::panicking() {
            eprintln!("---- the output of {}:\n{}", self.name, self.output());
        }
    }
}

/// Copies a stream to the shared text, line by line, until it ends.
pub fn collect(
    stream: impl Read + Send + 'static,
    output: &Arc<Mutex<String>>,
) -> thread::JoinHandle<()> {
    let output = output.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            output
                .lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}
