//! The atlas as a page on which concepts are named.
//!
//! Who may: whoever has the token. A page of another site has it not, and is recognised by its
//! origin besides; a name that somebody points to this machine (DNS rebinding) is not accepted
//! as the host.

use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::page::names_object;
use crate::bundle::{BundleError, Change, NamesFile};
use crate::files::hex;
use crate::http::{Request, Response};

/// Bytes of chance in a token.
const TOKEN_BYTES: usize = 16;

/// A page and the bundle that it is about.
#[derive(Debug)]
pub struct Site {
    page: Vec<u8>,
    names: NamesFile,
    token: String,
    hosts: Vec<String>,
}

/// What the page sends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Save {
    /// Version of the names that the person saw.
    base: String,
    changes: Vec<Change>,
}

impl Site {
    /// A site of the page `html` for the bundle in `bundle` of `count` concepts. Besides IP
    /// addresses and `localhost` it answers under the names `hosts`.
    pub fn new(html: Vec<u8>, bundle: &Path, count: usize, hosts: &[String]) -> Self {
        let token = hex(&rand::random::<[u8; TOKEN_BYTES]>());
        Self { page: html, names: NamesFile::new(bundle, count), token, hosts: hosts.to_vec() }
    }

    /// What a person needs to open the page.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Answers a request.
    pub fn answer(&self, request: &Request) -> Response {
        let response = self.refuse(request).unwrap_or_else(|| self.route(request));
        response
            .with("Cache-Control", "no-store")
            .with("Content-Security-Policy", "frame-ancestors 'none'; base-uri 'none'")
            .with("Cross-Origin-Resource-Policy", "same-origin")
            .with("Referrer-Policy", "no-referrer")
            .with("X-Content-Type-Options", "nosniff")
    }

    /// The answer to requests that did not come from a page of this site.
    fn refuse(&self, request: &Request) -> Option<Response> {
        let host = request.header("host").unwrap_or_default();
        if !self.knows(host) {
            let sentence = format!(
                "this atlas is not served under the name \"{host}\"; use its address, or start it \
                 with --host NAME"
            );
            return Some(Response::text(421, &sentence));
        }
        let origins = request.headers.iter().filter(|(name, _)| name == "origin");
        if origins.clone().any(|(_, origin)| *origin != format!("http://{host}")) {
            return Some(Response::text(403, "requests of other sites are not answered"));
        }
        None
    }

    /// Whether a `Host` header names this site.
    fn knows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        bare.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn route(&self, request: &Request) -> Response {
        match (&*request.method, &*request.path) {
            ("GET", "/") => {
                if !self.admits(request.parameter("token")) {
                    return Response::text(
                        403,
                        "open the address that `conceptseg atlas --serve` printed: it holds a token \
                         that is new with every start",
                    );
                }
                Response::new(200, "text/html; charset=utf-8", self.page.clone())
            }
            ("GET" | "POST", "/names") => {
                let bearer = request.header("authorization");
                if !self.admits(bearer.and_then(|value| value.strip_prefix("Bearer "))) {
                    return Response::text(
                        401,
                        "the atlas was started again since this page was opened; open the address \
                         that it printed",
                    );
                }
                if request.method == "GET" { self.read() } else { self.save(request) }
            }
            (_, "/" | "/names") => Response::text(405, "this cannot be done here"),
            _ => Response::text(404, "there is nothing here"),
        }
    }

    /// Compares hashes: how long it takes tells nothing about the token.
    fn admits(&self, token: Option<&str>) -> bool {
        token.is_some_and(|token| Sha256::digest(token) == Sha256::digest(&self.token))
    }

    fn read(&self) -> Response {
        match self.names.read() {
            Ok((names, version)) => Response::json(200, &names_object(&names, &version)),
            Err(error) => failure(&error),
        }
    }

    fn save(&self, request: &Request) -> Response {
        if request.header("content-type") != Some("application/json") {
            return Response::text(415, "names are saved as application/json");
        }
        let save: Save = match serde_json::from_slice(&request.body) {
            Ok(save) => save,
            Err(e) => return Response::text(400, &format!("this is no list of changes: {e}")),
        };
        let before = self.names.read().map(|(_, version)| version);
        match self.names.save(&save.changes) {
            Ok(saved) => {
                let status = if saved.conflicts.is_empty() { 200 } else { 409 };
                let mut object = names_object(&saved.names, &saved.version);
                object["merged"] = before.is_ok_and(|version| version != save.base).into();
                object["made"] = saved.made.into();
                object["conflicts"] = serde_json::json!(saved.conflicts);
                Response::json(status, &object)
            }
            Err(error) => failure(&error),
        }
    }
}

fn failure(error: &BundleError) -> Response {
    let sentence = crate::errors::sentence(error);
    match error {
        BundleError::Invalid { .. } | BundleError::Parse { .. } => Response::text(422, &sentence),
        _ => Response::text(500, &format!("{sentence}; nothing was saved")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::bundle::MANIFEST_FILE;

    fn site() -> (tempfile::TempDir, Site) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST_FILE), "").unwrap();
        let site = Site::new(b"<p>".to_vec(), dir.path(), 4, &["atlas.example".to_owned()]);
        (dir, site)
    }

    fn request(site: &Site, method: &str, body: &Value) -> Request {
        let headers = [
            ("host", "127.0.0.1:7878".to_owned()),
            ("authorization", format!("Bearer {}", site.token())),
            ("content-type", "application/json".to_owned()),
        ];
        Request {
            method: method.to_owned(),
            path: "/names".to_owned(),
            headers: headers.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            body: body.to_string().into_bytes(),
            ..Request::default()
        }
    }

    fn object(response: &Response) -> Value {
        serde_json::from_slice(&response.body).unwrap()
    }

    #[test]
    fn the_page_is_for_those_who_have_the_token() {
        let (_dir, site) = site();
        let mut request = Request {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            query: format!("token={}", site.token()),
            headers: vec![("host".to_owned(), "localhost:1".to_owned())],
            ..Request::default()
        };
        let response = site.answer(&request);
        assert_eq!((response.status, &*response.body), (200, &b"<p>"[..]));
        assert!(response.headers.iter().any(|(name, _)| *name == "Content-Security-Policy"));
        for query in ["", "token=", "token=0123456789abcdef0123456789abcdef"] {
            request.query = query.to_owned();
            assert_eq!(site.answer(&request).status, 403);
        }
        request.path = "/concepts.toml".to_owned();
        assert_eq!(site.answer(&request).status, 404);
    }

    #[test]
    fn other_names_and_other_sites_are_turned_away() {
        let (_dir, site) = site();
        let status = |host: &str, origin: Option<&str>| {
            let mut request = request(&site, "GET", &Value::Null);
            request.headers[0].1 = host.to_owned();
            if let Some(origin) = origin {
                request.headers.push(("origin".to_owned(), origin.to_owned()));
            }
            site.answer(&request).status
        };
        for host in ["127.0.0.1:7878", "[::1]:80", "localhost", "LOCALHOST:9", "atlas.example:80"] {
            assert_eq!(status(host, None), 200, "{host}");
            assert_eq!(status(host, Some(&format!("http://{host}"))), 200, "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:7878", "localhost.evil", "", "a:b"] {
            assert_eq!(status(host, None), 421, "{host}");
        }
        for origin in ["http://evil.example", "null", "https://127.0.0.1:7878", ""] {
            assert_eq!(status("127.0.0.1:7878", Some(origin)), 403, "{origin}");
        }
        let mut request = request(&site, "GET", &Value::Null);
        request.headers[1].1 = "Bearer x".to_owned();
        assert_eq!(site.answer(&request).status, 401);
        request.headers.remove(1);
        assert_eq!(site.answer(&request).status, 401);
    }

    #[test]
    fn names_are_saved_and_collisions_come_back() {
        let (_dir, site) = site();
        let base = object(&site.answer(&request(&site, "GET", &Value::Null)))["version"].clone();
        let save = |from: Value, to: &str| {
            let changes = json!([{ "concept": 1, "field": "name", "from": from, "to": to }]);
            site.answer(&request(&site, "POST", &json!({ "base": base, "changes": changes })))
        };
        let first = save(Value::Null, "road");
        assert_eq!(first.status, 200);
        let told = object(&first);
        assert_eq!((&told["merged"], &told["made"]), (&json!(false), &json!(1)));
        assert_eq!(told["concepts"]["1"]["name"], "road");
        let second = save(Value::Null, "street");
        assert_eq!(second.status, 409);
        let told = object(&second);
        assert_eq!(
            (&told["merged"], &told["conflicts"][0]["theirs"]),
            (&json!(true), &json!("road"))
        );
        assert_eq!(told["concepts"]["1"]["name"], "road");
        assert_eq!(save(json!("road"), "street").status, 200);
    }

    #[test]
    fn what_cannot_be_saved_is_said_in_a_sentence() {
        let (dir, site) = site();
        let answer = |body: &Value| {
            let response = site.answer(&request(&site, "POST", body));
            (response.status, String::from_utf8(response.body).unwrap())
        };
        let change = |to: &str| {
            let changes = [json!({ "concept": 1, "field": "color", "from": null, "to": to })];
            json!({ "base": "", "changes": changes })
        };
        let (status, text) = answer(&change("red"));
        assert!(status == 422 && text.contains("color must look like"), "{text}");
        let (status, text) = answer(&json!({ "changes": 1 }));
        assert!(status == 400 && text.contains("no list of changes"), "{text}");
        let mut form = request(&site, "POST", &change("#000000"));
        form.headers[2].1 = "text/plain".to_owned();
        assert_eq!(site.answer(&form).status, 415);
        std::fs::remove_file(dir.path().join(MANIFEST_FILE)).unwrap();
        let (status, text) = answer(&change("#000000"));
        assert!(status == 500 && text.contains("nothing was saved"), "{text}");
    }
}
