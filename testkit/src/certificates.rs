//! A certificate authority for a test, and certificates that it issued, as PEM files in a folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// An authority that nobody trusts unless he is told to.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, with its certificate in `ca.pem`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // A server may run as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))
            .expect("the folder is ours");
        let mut params = CertificateParams::new(Vec::new()).expect("no name is invalid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A certificate of the same name would seem to be signed by itself.
        (params.distinguished_name).push(DnType::CommonName, "an authority");
        let key = KeyPair::generate().expect("a key can be made");
        let own = params.self_signed(&key).expect("a key can sign");
        fs::write(folder.path().join("ca.pem"), own.pem()).expect("the folder can be written");
        let issuer = Issuer::new(params, key);
        Self { folder, issuer }
    }

    /// Writes `NAME.pem` and `NAME.key`, for a server of these host names or addresses, or for a client.
    pub fn issue(&self, name: &str, hosts: &[&str]) {
        self.issue_until(name, hosts, 4000);
    }

    /// The same, expired for years.
    pub fn issue_expired(&self, name: &str, hosts: &[&str]) {
        self.issue_until(name, hosts, 2020);
    }

    fn issue_until(&self, name: &str, hosts: &[&str], year: i32) {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("the names are valid");
        params.not_after = date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key can be made");
        let issued = params.signed_by(&key, &self.issuer);
        let issued = issued.expect("the authority can sign");
        let write = |suffix: &str, text: String| {
            fs::write(self.path(&format!("{name}.{suffix}")), text)
                .expect("the folder can be written");
        };
        write("pem", issued.pem());
        write("key", key.serialize_pem());
    }

    /// A file of the folder.
    pub fn path(&self, file: &str) -> String {
        let path: &Path = self.folder.path();
        path.join(file).display().to_string()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
