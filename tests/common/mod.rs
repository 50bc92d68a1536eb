//! The harness of the black-box tests: real servers started on free ports of the loopback
//! interface, people on IRC, fake peers, and the bot as a process.
//!
//! Nothing sleeps to synchronise: a wait polls a condition or a condition variable and ends in a
//! panic that shows what was seen. Whatever a test starts ends with it, even if it is killed.
#![allow(dead_code, unused_imports)] // every test file uses its own part

mod bot;
mod ear;
mod fake;
mod irc;
mod master;
mod world;

pub use bot::{Bot, Finished};
pub use ear::{Ear, like};
pub use fake::{Answer, FakeHttp, FakeIrc, FakePeer, Proxy, Request, Tunnel};
pub use irc::{Client, Inspircd, InspircdOptions, Ngircd, NgircdOptions};
pub use master::{
    CANCELLED, EXCEPTION, FAILURE, Master, RETRY, SKIPPED, SUCCESS, WARNINGS, Worker,
};
pub use world::World;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long an expectation waits.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server may take to come up: a master needs 2 s of CPU, and two cores may run a dozen at once.
pub const START: Duration = Duration::from_secs(90);
/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A new directory under target/lab, of which the last part is unique on this machine.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = root().join(format!("target/lab/{name}-{}-{count}", std::process::id()));
    let _ = fs::remove_dir_all(&dir); // of an earlier process with this number
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// A port of 127.0.0.1 that nobody listens on. From below the ephemeral range, or the kernel might give
/// it to some outgoing connection before our server binds it; each process searches from a place of its own.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let offset = start
            .wrapping_mul(61)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
            % COUNT;
        if TcpListener::bind(("127.0.0.1", FIRST + offset)).is_ok() {
            return FIRST + offset;
        }
    }
    panic!("no free port on 127.0.0.1");
}

/// Polls until the closure has a value.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    let mut pause = Pause::default();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        pause.take();
    }
}

/// The pause between two looks: short at first for what is quick, then longer, for looking costs the one who works.
#[derive(Default)]
struct Pause(u64);

impl Pause {
    fn take(&mut self) {
        self.0 = (self.0 * 2).clamp(2, 50);
        thread::sleep(Duration::from_millis(self.0));
    }
}

/// The path of a program that the tests need; its absence is a failure, not a reason to skip.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/local/sbin";
    let found = path
        .split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not installed; `sh tests/common/setup.sh` installs what the tests need")
    })
}

/// The release of Buildbot that `make test-masters` names; empty is the one of tests/requirements.txt.
pub fn buildbot() -> String {
    std::env::var("BUILDBOT").unwrap_or_default()
}

/// A program of the Python environment with that Buildbot.
pub fn venv(name: &str) -> PathBuf {
    let version = buildbot();
    let dir = if version.is_empty() {
        "target/venv".to_string()
    } else {
        format!("target/venv-{version}")
    };
    let file = root().join(dir).join("bin").join(name);
    assert!(
        file.exists(),
        "{} is not there; `sh tests/common/setup.sh {version}` makes it",
        file.display()
    );
    file
}

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
/// guard and the access to its files) or nap for three seconds (Anope). In a user namespace they see nobody.
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
fn spawn(command: Command) -> Child {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, work) = channel::<Job>();
        thread::spawn(move || {
            work.into_iter()
                .for_each(|(mut command, reply)| drop(reply.send(command.spawn())))
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
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = [collect(stdout, &output), collect(stderr, &output)];
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

    /// Ends it at once.
    pub fn kill(&mut self) -> ExitStatus {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.exited().unwrap()
    }

    /// Asks it to end, and insists after some seconds.
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
            let ended = self.exited(); // before the last look, or that would miss the last words
            if let Some(value) = poll(self) {
                return value;
            }
            if ended.is_some() || Instant::now() > end {
                let name = &self.name;
                panic!(
                    "{name}: waited for {what}; exit status {ended:?}; its output:\n{}",
                    self.output()
                );
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
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n  ");
            eprintln!("---- the end of {}'s output:\n  {tail}", self.name);
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

/// Writes one of the configuration files beside this one, its `@KEY@`s replaced.
fn fill(file: &Path, template: &str, values: &[(&str, &str)]) {
    let text = values
        .iter()
        .fold(template.to_string(), |text, (key, value)| {
            text.replace(&format!("@{key}@"), value)
        });
    fs::write(file, text).unwrap();
}

/// A certification authority of our own and what it signed; all keys are PKCS#8.
#[derive(Clone)]
pub struct Certificates {
    /// Holds ca, server, client, wrong and expired, each as .pem and .key.
    pub dir: PathBuf,
}

impl Certificates {
    /// Made once per test process.
    pub fn get() -> &'static Certificates {
        static ONCE: OnceLock<Certificates> = OnceLock::new();
        ONCE.get_or_init(|| Certificates::make(scratch("certificates")))
    }

    /// `server` is good for 127.0.0.1 and localhost, `wrong` for another name, `expired` was good yesterday.
    pub fn make(dir: PathBuf) -> Certificates {
        let here = "subjectAltName=IP:127.0.0.1,DNS:localhost";
        let script = format!(
            "set -e; cd '{}'
             new() {{ openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $1.key; }}
             new ca
             openssl req -new -x509 -key ca.key -days 30 -subj '/CN=Lab CA' -addext keyUsage=critical,keyCertSign -out ca.pem
             n=100
             sign() {{
                 new $1; n=$((n + 1)); printf '%s\\n' \"$3\" basicConstraints=CA:FALSE > $1.ext
                 openssl req -new -key $1.key -subj \"/CN=$1\" -out $1.csr
                 openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -set_serial $n -days $2 -extfile $1.ext -out $1.pem
             }}
             sign server 30 {here}; sign wrong 30 subjectAltName=DNS:other.example; sign expired -1 {here}
             sign client 30 extendedKeyUsage=clientAuth
             openssl genpkey -genparam -algorithm DH -pkeyopt group:ffdhe2048 -out dh.pem",
            dir.display()
        );
        let out = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(
            out.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Certificates { dir }
    }

    /// The path of one of the files as configurations want it.
    pub fn path(&self, file: &str) -> String {
        self.dir.join(file).to_str().unwrap().to_string()
    }

    /// A certificate with its key, to serve TLS in this process.
    pub fn identity(&self, name: &str) -> native_tls::Identity {
        let read = |end| fs::read(self.dir.join(format!("{name}.{end}"))).unwrap();
        native_tls::Identity::from_pkcs8(&read("pem"), &read("key")).unwrap()
    }

    /// SHA-256 in lower-case hexadecimal, as NickServ shows it.
    pub fn fingerprint(&self, name: &str) -> String {
        let file = self.path(&format!("{name}.pem"));
        let out = Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in", &file])
            .output();
        let text = String::from_utf8(out.unwrap().stdout).unwrap();
        text.trim()
            .rsplit('=')
            .next()
            .unwrap()
            .replace(':', "")
            .to_lowercase()
    }
}
