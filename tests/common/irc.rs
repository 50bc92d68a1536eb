//! Real IRC servers with their services.

use super::{
    Certificates, Client, Process, START, daemon, fill, free_port, guarded, root, scratch,
};
use std::fs;
use std::path::PathBuf;

/// ngIRCd: no services, no tags, hardly a capability, and strict about lengths.
pub struct Ngircd {
    pub port: u16,
    /// 0 without certificates.
    pub tls_port: u16,
    dir: PathBuf,
    process: Option<Process>,
}

/// All off by default.
#[derive(Default)]
pub struct NgircdOptions<'a> {
    pub password: Option<&'a str>,
    /// Adds a TLS port with this certificate of [`Certificates`] (`server`, `wrong`, `expired`).
    pub certificate: Option<&'a str>,
    /// Delays those who conversation fast, as ngIRCd does out of the box.
    pub penalties: bool,
    /// Sections to add, `[Operator]` or `[Channel]`.
    pub extra: &'a str,
}

impl Ngircd {
    #[track_caller]
    pub fn start(options: NgircdOptions) -> Ngircd {
        let dir = scratch("ngircd");
        let mut server = Ngircd {
            port: free_port(),
            tls_port: 0,
            dir,
            process: None,
        };
        let mut text = server.global_section(&options);
        if let Some(name) = options.certificate {
            server.tls_port = free_port();
            text += &server.ssl_section(name);
        }
        fs::write(server.dir.join("ngircd.conf"), text + options.extra).unwrap();
        server.start_again();
        server
    }

    fn global_section(&self, options: &NgircdOptions) -> String {
        let port = self.port;
        let penalty = if options.penalties { -1 } else { 0 };
        let password = match options.password {
            Some(password) => format!("Password = {password}\n"),
            None => String::new(),
        };
        format!(
            "[Global]\nName = irc.lab.test\nInfo = ngIRCd under test\nAdminInfo1 = lab\nListen = 127.0.0.1\n\
             Ports = {port}\nMotdPhrase = lab\n{password}[Limits]\nMaxConnectionsIP = 0\nMaxJoins = 0\n\
             MaxNickLength = 16\nMaxPenaltyTime = {penalty}\n[Options]\nDNS = no\nIdent = no\nPAM = no\n\
             OperCanUseMode = yes\n"
        )
    }

    /// With DH parameters: without, ngIRCd computes some for up to ten seconds.
    fn ssl_section(&self, certificate: &str) -> String {
        let file = |name: &str| Certificates::get().path(name);
        format!(
            "[SSL]\nPorts = {}\nCertFile = {}\nKeyFile = {}\nDHFile = {}\n",
            self.tls_port,
            file(&format!("{certificate}.pem")),
            file(&format!("{certificate}.key")),
            file("dh.pem")
        )
    }

    /// With the same ports and configuration.
    #[track_caller]
    pub fn start_again(&mut self) {
        let mut command = daemon("ngircd");
        command
            .args(["--nodaemon", "--config"])
            .arg(self.dir.join("ngircd.conf"));
        let mut process = Process::start("ngircd", command);
        process.wait_for("the server to be ready", START, |process| {
            process.output().contains(" ready.").then_some(())
        });
        self.process = Some(process);
    }

    pub fn stop(&mut self) {
        self.process = None;
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// The process, to STOP and CONT it.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("ngircd does not run")
    }
}

/// InspIRCd 3, and Anope 2.0 if there are to be services.
pub struct Inspircd {
    /// With the limits of the distribution's package: for the bot.
    pub port: u16,
    /// Without them: for people.
    pub easy_port: u16,
    /// TLS, the package's limits, client certificates asked for; 0 without.
    pub tls_port: u16,
    dir: PathBuf,
    link_port: u16,
    server: Option<Process>,
    services: Option<Process>,
}

/// All off by default.
#[derive(Default)]
pub struct InspircdOptions<'a> {
    pub services: bool,
    pub certificate: Option<&'a str>,
    /// More lines for inspircd.conf.
    pub extra: &'a str,
}

impl Inspircd {
    #[track_caller]
    pub fn start_with(options: InspircdOptions) -> Inspircd {
        let mut irc = Inspircd {
            port: free_port(),
            easy_port: free_port(),
            tls_port: 0,
            dir: scratch("inspircd"),
            link_port: free_port(),
            server: None,
            services: None,
        };
        let mut template = include_str!("inspircd.conf").to_string();
        template += options.extra;
        if let Some(name) = options.certificate {
            irc.tls_port = free_port();
            template += &irc.tls_config(name);
        }
        irc.write_config(&template);
        irc.start_server();
        if options.services {
            irc.start_services();
        }
        irc
    }

    fn tls_config(&self, certificate: &str) -> String {
        let file = |end| Certificates::get().path(&format!("{certificate}.{end}"));
        format!(
            "\n<module name=\"ssl_gnutls\">\n<module name=\"sslinfo\">\n\
             <sslprofile name=\"tls\" provider=\"gnutls\" certfile=\"{}\" keyfile=\"{}\" hash=\"sha256\" \
             requestclientcert=\"yes\">\n<bind address=\"127.0.0.1\" port=\"{}\" type=\"clients\" sslprofile=\"tls\">\n",
            file("pem"),
            file("key"),
            self.tls_port
        )
    }

    /// Writes the configurations of the server and of the services.
    fn write_config(&self, template: &str) {
        let port = self.port.to_string();
        let easy = self.easy_port.to_string();
        let link = self.link_port.to_string();
        let values = [
            ("PORT", port.as_str()),
            ("EASY", easy.as_str()),
            ("LINK", link.as_str()),
            ("DIR", self.dir.to_str().unwrap()),
        ];
        let services = include_str!("anope.conf");
        fill(&self.dir.join("inspircd.conf"), template, &values);
        fill(&self.dir.join("services.conf"), services, &values);
        fs::write(self.dir.join("motd.txt"), "lab\n").unwrap();
    }

    #[track_caller]
    fn start_server(&mut self) {
        let mut command = daemon("inspircd");
        command
            .args(["--nofork", "--runasroot", "--config"])
            .arg(self.dir.join("inspircd.conf"));
        let mut process = Process::start("inspircd", command);
        process.wait_port(self.easy_port);
        self.server = Some(process);
    }

    /// Starts Anope and waits until it has linked and NickServ is there.
    #[track_caller]
    pub fn start_services(&mut self) {
        let mut command = daemon("anope");
        command.args([
            "--nofork",
            "--localedir=/usr/share/anope/locale",
            "--modulesdir=/usr/lib/anope",
        ]);
        for option in ["--confdir", "--dbdir", "--logdir"] {
            command.arg(format!("{option}={}", self.dir.display()));
        }
        let mut process = Process::start("anope", command);
        let person = Client::connect(self.easy_port, "lab-services");
        process.wait_for("the link", START, |_| {
            person.send("USERHOST NickServ");
            let answer = person.expect(|line| line.contains(" 302 "));
            answer.contains("NickServ=").then_some(())
        });
        self.services = Some(process);
    }

    /// Services go, their registered nicks stay on file.
    pub fn stop_services(&mut self) {
        self.services = None;
    }

    /// Restarts the server; services are started again if they ran.
    #[track_caller]
    pub fn restart(&mut self) {
        let services = self.services.take().is_some();
        self.server = None;
        self.start_server();
        if services {
            self.start_services();
        }
    }
}

/// Runs ircd-hybrid in a mount namespace in which its package is installed, and not as root, which it refuses.
const IN_ITS_PLACE: &str = "mount -t overlay overlay -o \"lowerdir=$0/usr:/usr\" /usr && \
                            exec unshare --user -- ircd-hybrid \"$@\"";

/// ircd-hybrid 8.2: no services, and it reads slowly. Debian does not install it beside ngIRCd, so setup.sh only unpacks
/// it, while it finds its modules where the package has them.
pub struct Hybrid {
    pub port: u16,
    _process: Process,
}

impl Hybrid {
    #[track_caller]
    pub fn start() -> Hybrid {
        let port = free_port();
        let dir = scratch("hybrid");
        let template = include_str!("hybrid.conf");
        let config = dir.join("ircd.conf");
        fill(&config, template, &[("PORT", &port.to_string())]);
        let mut command = guarded("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "--", "sh", "-c"])
            .arg(IN_ITS_PLACE)
            .arg(root().join("target/hybrid"))
            .arg("-foreground")
            .arg("-configfile")
            .arg(config);
        for file in ["log", "pid", "kline", "dline", "xline", "resv"] {
            command.arg(format!("-{file}file")).arg(dir.join(file));
        }
        let mut process = Process::start("ircd-hybrid", command);
        process.wait_port(port);
        Hybrid {
            port,
            _process: process,
        }
    }
}
