//! Encrypted connections to a broker: whose certificates are trusted, which one is shown, and
//! what went wrong, in words.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

/// Why a connection cannot be encrypted as asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Files for an encrypted connection, to a broker that is reached without encryption.
    #[error("{0} is reached without encryption; write mqtts://HOST, or leave out the certificates")]
    Plain(String),
    /// A certificate without its key, or a key without its certificate.
    #[error("a certificate of this device and its key belong together; give both or neither")]
    Half,
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {what} in PEM format ({reason})")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What was found wrong.
        reason: String,
    },
    /// The certificate and the key do not fit.
    #[error("the certificate {certificate} cannot be used with the key {key}: {reason}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the library said.
        reason: String,
    },
    /// The system trusts nobody.
    #[error(
        "this system has no certificates of authorities (Debian: apt install ca-certificates); \
         name a file with the one of your broker"
    )]
    NoRoots,
    /// The library refuses.
    #[error("cannot prepare an encrypted connection: {0}")]
    Library(#[from] rustls::Error),
}

/// Files of an encrypted connection, all in PEM format. They are read at every connection, so
/// that renewed ones need no restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that may vouch for the broker; without it those that the
    /// system trusts.
    pub ca: Option<PathBuf>,
    /// Certificate that this device shows, and those that lead to its authority.
    pub certificate: Option<PathBuf>,
    /// Key of that certificate.
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn read(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| TlsError::Content {
                    path: path.clone(),
                    what: "usable certificate",
                    reason: e.to_string(),
                })?;
            }
        } else {
            // Some of a system's certificates may be damaged; the others still count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        match (&self.certificate, &self.key) {
            (None, None) => Ok(builder.with_no_client_auth()),
            (Some(certificate), Some(key)) => {
                let secret =
                    PrivateKeyDer::from_pem_file(key).map_err(|e| of_pem(key, "private key", e))?;
                let shown = certificates(certificate)?;
                builder.with_client_auth_cert(shown, secret).map_err(|e| TlsError::Pair {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    reason: e.to_string(),
                })
            }
            _ => Err(TlsError::Half),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |e| of_pem(path, "certificate", e);
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(wrong)?
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    if found.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn of_pem(path: &Path, what: &'static str, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => TlsError::Io { path, source },
        pem::Error::NoItemsFound => {
            TlsError::Content { path, what, reason: "there is none".to_owned() }
        }
        other => TlsError::Content { path, what, reason: other.to_string() },
    }
}

/// Why a connection was not made or ended, and what to do where certificates are the reason.
pub(super) fn reason(error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return of_library(error);
        }
        if error.is::<rustls::pki_types::InvalidDnsNameError>() {
            return "an encrypted connection needs the broker's name or its IPv4 address"
                .to_owned();
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::UnexpectedEof
            && error.to_string().contains("handshake")
        {
            return "it ended the connection before encryption was agreed; does this port speak TLS?"
                .to_owned();
        }
        // What an I/O error wraps is not among its sources, only what that has as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    error.to_string()
}

fn of_library(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    use CertificateError as Wrong;
    let text = match error {
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            Wrong::UnknownIssuer | Wrong::BadSignature => {
                "its certificate is of an authority that is not trusted here; check the CA file"
            }
            Wrong::Expired | Wrong::ExpiredContext { .. } => {
                "its certificate has expired; renew it, or set this device's clock"
            }
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
                "its certificate is not valid yet; set this device's clock"
            }
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
                "its certificate is for another name; use the name that the certificate has"
            }
            other => return format!("its certificate cannot be used: {other}"),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            Alert::CertificateRequired | Alert::HandshakeFailure => {
                "it asks for a certificate of this device; give a certificate and its key"
            }
            Alert::CertificateExpired => {
                "it says that the certificate of this device has expired; renew it"
            }
            Alert::UnknownCA | Alert::BadCertificate | Alert::DecryptError => {
                "it does not trust the certificate of this device; use one of its own authority"
            }
            other => return format!("it refused the encrypted connection: {other:?}"),
        },
        rustls::Error::InvalidMessage(_) => {
            "it does not answer with TLS; write mqtt:// or the port that it has for TLS"
        }
        other => return other.to_string(),
    };
    text.to_owned()
}
