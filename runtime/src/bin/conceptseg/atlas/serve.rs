//! `conceptseg atlas --serve`.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use conceptseg::atlas::page;
use conceptseg::atlas::server::Site;
use conceptseg::bundle::Bundle;
use conceptseg::http;
use serde_json::json;

/// Largest page that is served, in bytes: more than any that is made.
const MAX_PAGE: u64 = 1 << 30;

/// Who may name concepts, and where.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Serve the page, to name concepts on it. Ends with Ctrl-C.
    #[arg(long)]
    serve: bool,
    /// Address and port. Only this machine can reach the default one; there is no encryption.
    #[arg(long, default_value = "127.0.0.1:7878", value_name = "ADDRESS:PORT", requires = "serve")]
    listen: SocketAddr,
    /// A name of this machine under which the page may be opened, besides its addresses.
    #[arg(long, value_name = "NAME", requires = "serve")]
    host: Vec<String>,
}

impl ServeArgs {
    pub fn is_wanted(&self) -> bool {
        self.serve
    }

    /// Serves the page at `path` until the process ends.
    pub fn run(&self, bundle: &Bundle, path: &Path, json: bool) -> Result<()> {
        let html = read_page(bundle, path)?;
        let listener = TcpListener::bind(self.listen).with_context(|| {
            format!(
                "cannot listen on {}; choose another port with --listen, 0 takes a free one",
                self.listen
            )
        })?;
        let address = listener.local_addr().context("cannot tell the address")?;
        let site = Site::new(html, &bundle.dir, bundle.codebook.count, &self.host);
        let url = format!("http://{address}/?token={}", site.token());
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", json!({ "url": url }))?;
        } else {
            writeln!(out, "open {url}")?;
        }
        out.flush()?;
        drop(out);
        if let Err(error) = tempfile::tempfile_in(&bundle.dir) {
            tracing::warn!(
                "the page can be looked at only: nothing can be saved to {} ({error})",
                bundle.dir.display()
            );
        }
        if !address.ip().is_loopback() {
            tracing::warn!(
                "everybody who can reach {address} and has the token can name concepts, and what \
                 they send is not encrypted"
            );
        }
        http::serve(&listener, &|request| site.answer(request)).context("cannot listen any more")
    }
}

/// The page, where it is about this bundle.
fn read_page(bundle: &Bundle, path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map(|file| file.len()).with_context(|| {
        format!("there is no atlas at {}; make one by giving --images", path.display())
    })?;
    ensure!(size <= MAX_PAGE, "{} is too large for an atlas", path.display());
    let html = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the atlas {}", path.display()))?;
    let codebook = page::codebook_of(&html);
    ensure!(codebook.is_some(), "{} is no atlas; make one by giving --images", path.display());
    ensure!(
        codebook == Some(&bundle.manifest.concepts.sha256),
        "{} is about the concepts of another bundle than {}; make it again by giving --images",
        path.display(),
        bundle.dir.display()
    );
    Ok(html.into_bytes())
}
