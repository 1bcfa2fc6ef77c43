//! Encrypted connections to a real broker, with an authority of the test's own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    date_time_ymd,
};

use super::mqtt::{Mqtt, MqttConfig, TlsFiles};
use super::spool::Spool;
use super::tests::{Broker, event, numbers, subscribe_with};

/// An authority, and the folder of its certificates.
struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = common_name("authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes NAME.pem and NAME.key.
    fn sign(&self, name: &str, host: &str, expires: i32) {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.distinguished_name = common_name(name);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(expires, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// The files of a device with the certificate `name`.
    fn files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            ca: Some(self.file("ca.pem")),
            certificate: Some(self.file(&format!("{name}.pem"))),
            key: Some(self.file(&format!("{name}.key"))),
        }
    }

    /// A broker with the certificate `name`, which asks devices for theirs where `strict`.
    fn broker(&self, port: u16, name: &str, strict: bool) -> Option<Broker> {
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\n\
             require_certificate {strict}\nuser root\n",
            self.file("ca.pem").display(),
            self.file(&format!("{name}.pem")).display(),
            self.file(&format!("{name}.key")).display(),
        );
        let config = self.file(&format!("{name}.conf"));
        std::fs::write(&config, text).unwrap();
        Broker::with(port, &["-c", config.to_str().unwrap()])
    }
}

/// OpenSSL takes a certificate that has its authority's name for one that signed itself.
fn common_name(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn open(port: u16, tls: TlsFiles, spool: &Path) -> Mqtt {
    let config = MqttConfig {
        broker: format!("mqtts://127.0.0.1:{port}"),
        device: "cam-7".to_owned(),
        prefix: "site".to_owned(),
        tls,
        login: None,
    };
    Mqtt::start(config, Spool::open(spool, 4 << 20).unwrap()).unwrap()
}

fn await_outage(mqtt: &Mqtt) -> String {
    let until = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(outage) = mqtt.outage() {
            return outage;
        }
        assert!(Instant::now() < until, "no outage was told");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn both_sides_show_certificates_and_an_outage_loses_nothing() {
    let authority = Authority::new();
    authority.sign("broker", "127.0.0.1", 2100);
    authority.sign("device", "cam-7", 2100);
    let port = free_port();
    let Some(broker) = authority.broker(port, "broker", true) else { return };
    let subscribe = || {
        let mut options = rumqttc::MqttOptions::new("test", "127.0.0.1", port);
        let tls = authority.files("device").read().unwrap();
        options.set_transport(rumqttc::Transport::tls_with_config(tls.into()));
        subscribe_with(options)
    };
    let spool = tempfile::tempdir().unwrap();
    let heard = subscribe();
    let mqtt = open(port, authority.files("device"), spool.path());
    for number in 1..=20 {
        mqtt.event(&event(number)).unwrap();
    }
    assert_eq!(numbers(&heard, 20), (1..=20).collect::<Vec<_>>());

    drop(broker);
    for number in 21..=40 {
        mqtt.event(&event(number)).unwrap();
    }
    await_outage(&mqtt);
    let Some(_broker) = authority.broker(port, "broker", true) else { return };
    let heard = subscribe();
    let mut all = numbers(&heard, 40);
    // The broker may get again what it had not acknowledged before it went.
    all.dedup();
    assert!(all.is_sorted() && all.ends_with(&(21..=40).collect::<Vec<_>>()), "{all:?}");
    let counts = mqtt.close(Duration::from_secs(20));
    assert!(counts.sent >= 40 && counts.dropped == 0, "{counts:?}");
}

#[test]
fn what_is_wrong_with_a_certificate_is_told_and_events_wait() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    authority.sign("good", "127.0.0.1", 2100);
    authority.sign("old", "127.0.0.1", 2001);
    authority.sign("other", "elsewhere.lan", 2100);
    authority.sign("device", "cam-7", 2100);
    authority.sign("old-device", "cam-7", 2001);
    foreign.sign("device", "cam-7", 2100);
    let ca = |of: &Authority| TlsFiles { ca: Some(of.file("ca.pem")), ..TlsFiles::default() };
    let stranger = TlsFiles { ca: Some(authority.file("ca.pem")), ..foreign.files("device") };
    for (shown, strict, tls, part) in [
        ("good", false, ca(&foreign), "an authority that is not trusted here"),
        ("old", false, ca(&authority), "its certificate has expired"),
        ("other", false, ca(&authority), "for another name"),
        ("good", true, ca(&authority), "give a certificate and its key"),
        ("good", true, stranger, "does not trust the certificate of this device"),
        ("good", true, authority.files("old-device"), "certificate of this device has expired"),
    ] {
        let port = free_port();
        let Some(_broker) = authority.broker(port, shown, strict) else { return };
        let spool = tempfile::tempdir().unwrap();
        let mqtt = open(port, tls, spool.path());
        mqtt.event(&event(1)).unwrap();
        let outage = await_outage(&mqtt);
        assert!(outage.contains(part), "{shown}, {part}: {outage}");
        let counts = mqtt.close(Duration::ZERO);
        assert_eq!((counts.connected, counts.sent, counts.dropped), (false, 0, 0), "{outage}");
        // It goes when the device's files are right.
        if part.contains("not trusted here") {
            let mqtt = open(port, ca(&authority), spool.path());
            assert_eq!(mqtt.close(Duration::from_secs(30)).sent, 1);
        }
    }
    // Nobody there, and somebody who does not speak TLS.
    let spool = tempfile::tempdir().unwrap();
    let port = free_port();
    let mqtt = open(port, ca(&authority), spool.path());
    assert!(await_outage(&mqtt).contains("refused"));
    mqtt.close(Duration::ZERO);
    let Some(_broker) = Broker::start(port) else { return };
    let mqtt = open(port, ca(&authority), spool.path());
    let outage = await_outage(&mqtt);
    assert!(outage.contains("TLS"), "{outage}");
    mqtt.close(Duration::ZERO);
}

#[test]
fn wrong_files_are_refused_before_the_first_connection() {
    let authority = Authority::new();
    authority.sign("device", "cam-7", 2100);
    authority.sign("twin", "cam-7", 2100);
    let file = |name: &str| Some(authority.file(name));
    let good = authority.files("device");
    for (tls, part) in [
        (TlsFiles { ca: file("absent.pem"), ..good.clone() }, "cannot read"),
        (TlsFiles { ca: file("device.key"), ..good.clone() }, "no certificate in PEM format"),
        (TlsFiles { key: file("device.pem"), ..good.clone() }, "no private key in PEM format"),
        (TlsFiles { key: None, ..good.clone() }, "give both or neither"),
        (TlsFiles { key: file("twin.key"), ..good.clone() }, "cannot be used with the key"),
    ] {
        let error = tls.read().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let spool = tempfile::tempdir().unwrap();
    let config = MqttConfig {
        broker: "127.0.0.1:8883".to_owned(),
        device: "cam-7".to_owned(),
        prefix: "site".to_owned(),
        tls: good,
        login: None,
    };
    let error = Mqtt::start(config, Spool::open(spool.path(), 4 << 20).unwrap()).unwrap_err();
    assert!(error.to_string().contains("without encryption"), "{error}");
}
