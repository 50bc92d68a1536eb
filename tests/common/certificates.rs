//! A certification authority for the tests and the certificates that it signed.

use super::scratch;
use native_tls::{Certificate, TlsConnector};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

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

    /// For a client that trusts our authority only.
    pub fn connector(&self) -> TlsConnector {
        let ca = fs::read(self.path("ca.pem")).unwrap();
        let mut builder = TlsConnector::builder();
        builder.add_root_certificate(Certificate::from_pem(&ca).unwrap());
        builder.build().unwrap()
    }

    /// A certificate with its key, to serve TLS in this process.
    pub fn identity(&self, name: &str) -> native_tls::Identity {
        let read = |end| fs::read(self.dir.join(format!("{name}.{end}"))).unwrap();
        native_tls::Identity::from_pkcs8(&read("pem"), &read("key")).unwrap()
    }
}
