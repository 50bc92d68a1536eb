//! A real Buildbot master and its workers, and what a test asks of them over HTTP.

use super::{Certificates, Process, START, TIMEOUT, guarded, root, scratch, venv, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Buildbot's results, as builds carry them and [`Master::release`] takes them.
pub const SUCCESS: i64 = 0;
pub const WARNINGS: i64 = 1;
pub const FAILURE: i64 = 2;
pub const SKIPPED: i64 = 3;
pub const EXCEPTION: i64 = 4;
pub const RETRY: i64 = 5;
pub const CANCELLED: i64 = 6;

/// One master on free ports, with a database of its own. What its configuration may say is in master.cfg beside this file.
pub struct Master {
    pub port: u16,
    pub dir: PathBuf,
    pub worker_port: u16,
    certificates: Option<&'static Certificates>,
    process: Option<Process>,
}

impl Master {
    /// Writes the configuration, of which `config` is the last part, and waits until the API answers.
    #[track_caller]
    pub fn start(name: &str, config: &str) -> Master {
        Master::launch(name, config, None)
    }

    /// The same over HTTPS, with the certificate `server`.
    #[track_caller]
    pub fn start_tls(name: &str, config: &str) -> Master {
        Master::launch(name, config, Some(Certificates::get()))
    }

    #[track_caller]
    fn launch(name: &str, config: &str, certificates: Option<&'static Certificates>) -> Master {
        let mut master = Master {
            port: super::free_port(),
            dir: scratch(&format!("master-{name}")),
            worker_port: super::free_port(),
            certificates,
            process: None,
        };
        fs::copy(empty_database(), master.dir.join("state.sqlite")).unwrap();
        master.configure(config);
        let tac = "from twisted.application import service\nfrom buildbot.master import BuildMaster\n\
                   application = service.Application('buildmaster')\n\
                   BuildMaster('.', 'master.cfg', None).setServiceParent(application)\n";
        fs::write(master.dir.join("buildbot.tac"), tac).unwrap();
        master.start_again();
        master
    }

    /// Replaces the test's part of the configuration; the master reads it on HUP or when started again.
    pub fn configure(&self, config: &str) {
        // Buildbot refuses a builder that no scheduler drives.
        let end =
            "if not c['schedulers']:\n    force('force', [one.name for one in c['builders']])\n";
        let text = format!("{}{config}\n{end}", include_str!("master.cfg"));
        fs::write(self.dir.join("master.cfg"), text).unwrap();
    }

    /// Starts it where it left off: the same ports, the same database.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the master runs already");
        let mut command = twistd(&self.dir);
        command.env("MASTER_DIR", &self.dir);
        command.env("MASTER_PORT", self.port.to_string());
        command.env("WORKER_PORT", self.worker_port.to_string());
        if let Some(certificates) = self.certificates {
            command.env("MASTER_TLS", &certificates.dir);
        }
        let mut process = Process::start("master", command);
        process.wait_for("GET /api/v2/builders", START, |process| {
            let ready = process.output().contains("BuildMaster is running");
            (ready && self.request("GET", "/api/v2/builders", "", "").ok()?.0 == 200).then_some(())
        });
        self.process = Some(process);
    }

    /// SIGTERM, and waits for the end; a running build ends as cancelled.
    pub fn stop(&mut self) {
        self.process
            .take()
            .expect("the master does not run")
            .terminate();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("the master does not run").kill();
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// The process, to read its log or to send it a signal.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the master does not run")
    }

    /// As the bot's configuration has it.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://127.0.0.1:{}/", self.port)
    }

    /// GET of a path such as `/api/v2/builds`. A busy master may lose some of its answer, which it writes in a thread that
    /// its HTTP server does not expect (`_write_json_data` in Buildbot's www/rest.py): then once more.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        wait_for(&format!("JSON of GET {path}"), TIMEOUT, || {
            let answer = match self.request("GET", path, "", "") {
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return None,
                answer => answer,
            };
            let (status, body) = answer.unwrap_or_else(|e| panic!("GET {path}: {e}"));
            assert_eq!(status, 200, "GET {path}: {body}");
            serde_json::from_str(&body).ok()
        })
    }

    /// Calls a method of the control API and returns its `result`.
    #[track_caller]
    pub fn post(&self, path: &str, method: &str, params: Value) -> Value {
        let call =
            json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let answer = self.request("POST", path, "application/json", &call);
        let (status, body) = answer.unwrap_or_else(|e| panic!("POST {path}: {e}"));
        assert_eq!(status, 200, "POST {path} {call}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["result"].take()
    }

    #[track_caller]
    pub fn builder_id(&self, name: &str) -> i64 {
        let all = self.get("/api/v2/builders"); // masters before 4 refuse to look for a name that is no identifier
        let mut builders = all["builders"].as_array().into_iter().flatten();
        let found = builders.find(|builder| builder["name"] == name);
        let id = found.and_then(|builder| builder["builderid"].as_i64());
        id.unwrap_or_else(|| panic!("no builder {name}: {all}"))
    }

    /// Forces a build through the first force scheduler that lists the builder; returns the build request's id.
    #[track_caller]
    pub fn force(&self, builder: &str, fields: &[(&str, &str)]) -> i64 {
        let id = self.builder_id(builder);
        let schedulers = self.get(&format!("/api/v2/builders/{id}/forceschedulers?field=name"));
        let name = schedulers["forceschedulers"][0]["name"].as_str();
        let name = name.unwrap_or_else(|| panic!("no force scheduler lists {builder}"));
        let mut params = json!({"builderid": id});
        for (key, value) in fields {
            params[*key] = json!(value);
        }
        let result = self.post(
            &format!("/api/v2/forceschedulers/{}", percent(name)),
            "force",
            params,
        );
        result[1][id.to_string()]
            .as_i64()
            .unwrap_or_else(|| panic!("force {builder}: {result}"))
    }

    /// A change on branch main, as a version control hook would send it.
    #[track_caller]
    pub fn change(&self, author: &str, revision: &str, comments: &str) {
        self.change_with(&[
            ("author", author),
            ("revision", revision),
            ("comments", comments),
            ("branch", "main"),
        ]);
    }

    /// A change with any of the fields of Buildbot's `base` hook.
    #[track_caller]
    pub fn change_with(&self, fields: &[(&str, &str)]) {
        let form: Vec<String> = fields
            .iter()
            .map(|(key, value)| format!("{key}={}", percent(value)))
            .collect();
        let answer = self.request(
            "POST",
            "/change_hook/base",
            "application/x-www-form-urlencoded",
            &form.join("&"),
        );
        let (status, body) = answer.unwrap_or_else(|e| panic!("change: {e}"));
        assert_eq!(status, 200, "change: {body}");
    }

    /// Waits until the build with this number of this builder runs its steps. A build is listed before its worker has
    /// answered; to take that worker away then makes Buildbot lose the build for good.
    #[track_caller]
    pub fn wait_started(&self, builder: &str, number: i64) -> Value {
        let runs = |build: &Value| build["complete"] == true || build["state_string"] == "building";
        self.build_when(builder, number, "to run", runs)
    }

    /// Waits until it is complete.
    #[track_caller]
    pub fn wait_build(&self, builder: &str, number: i64) -> Value {
        self.build_when(builder, number, "to end", |build| build["complete"] == true)
    }

    #[track_caller]
    fn build_when(
        &self,
        builder: &str,
        number: i64,
        what: &str,
        done: impl Fn(&Value) -> bool,
    ) -> Value {
        let path = format!(
            "/api/v2/builders/{}/builds?number={number}",
            self.builder_id(builder)
        );
        wait_for(&format!("{builder} #{number} {what}"), TIMEOUT, || {
            let build = self.get(&path).pointer_mut("/builds/0")?.take();
            done(&build).then_some(build)
        })
    }

    /// Waits until so many builds are as this filter of the API says (`complete=true`).
    #[track_caller]
    pub fn wait_count(&self, filter: &str, count: usize) {
        let path = format!("/api/v2/builds?field=complete&field=state_string&{filter}");
        wait_for(&format!("{count} builds with {filter}"), START, || {
            (self.get(&path)["builds"].as_array()?.len() >= count).then_some(())
        });
    }

    /// Whether this worker is connected.
    #[track_caller]
    pub fn online(&self, worker: &str) -> bool {
        let found = self.get(&format!("/api/v2/workers?name={}", percent(worker)));
        found["workers"][0]["connected_to"]
            .as_array()
            .is_some_and(|masters| !masters.is_empty())
    }

    /// Lets the running build of a `gated` builder, or the next one, end with this result.
    #[track_caller]
    pub fn release(&self, builder: &str, result: i64) {
        let name: String = builder.bytes().map(|byte| format!("{byte:02x}")).collect();
        let gate = self.dir.join(format!("gate-{name}"));
        let new = self.dir.join(format!("new-{name}"));
        wait_for("the release before this one to be used", TIMEOUT, || {
            (!gate.exists()).then_some(())
        });
        fs::write(&new, result.to_string()).unwrap();
        fs::rename(new, gate).unwrap(); // the step must not read half a file
    }

    /// One request on a connection of its own. HTTP/1.0, whose answers have no chunks.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port))?;
        tcp.set_read_timeout(Some(TIMEOUT))?;
        let mut head = format!(
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nAccept: application/json\r\n",
            self.port
        );
        if !content.is_empty() {
            head += &format!(
                "Content-Type: {content}\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        let message = format!("{head}\r\n{body}");
        let mut answer = Vec::new();
        match self.certificates {
            None => exchange(tcp, &message, &mut answer)?,
            Some(certificates) => {
                let connector = certificates.connector();
                let tls = connector.connect("127.0.0.1", tcp);
                let tls = tls.map_err(std::io::Error::other)?;
                exchange(tls, &message, &mut answer)?;
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or(std::io::ErrorKind::InvalidData)?;
        Ok((status, body.to_string()))
    }
}

fn exchange(
    mut stream: impl Read + Write,
    message: &str,
    answer: &mut Vec<u8>,
) -> std::io::Result<()> {
    stream.write_all(message.as_bytes())?;
    stream.read_to_end(answer).map(drop)
}

impl Drop for Master {
    /// At once: nobody reads its database again, and a running build would delay an orderly end.
    fn drop(&mut self) {
        self.process.as_mut().map(Process::kill);
    }
}

/// Runs buildbot.tac in a directory.
pub fn twistd(dir: &Path) -> Command {
    let mut command = guarded(venv("twistd"));
    command
        .args([
            "--nodaemon",
            "--no_save",
            "--pidfile=",
            "--python=buildbot.tac",
        ])
        .current_dir(dir);
    command
}

/// The database of a new master. Making it takes longer than all the rest, so it is made once for each set of requirements.
fn empty_database() -> &'static Path {
    static ONCE: OnceLock<PathBuf> = OnceLock::new();
    ONCE.get_or_init(|| {
        let mut hash = DefaultHasher::new();
        fs::read(venv("../requirements.txt"))
            .expect("setup.sh writes it")
            .hash(&mut hash);
        let cached = root().join(format!("target/lab/state-{:016x}.sqlite", hash.finish()));
        if !cached.exists() {
            let dir = scratch("create-master");
            let out = guarded(venv("buildbot"))
                .args(["create-master", "-r", "."])
                .current_dir(&dir)
                .output()
                .unwrap();
            assert!(
                out.status.success(),
                "create-master: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            fs::rename(dir.join("state.sqlite"), &cached).unwrap(); // at once, for others may be making it too
        }
        cached
    })
}

fn percent(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut encoded = String::new();
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}
