//! Which requests are answered: only those that the page itself sends, from a browser on this machine. Pure.
//!
//! - The path begins with a secret, which only the person who started lbctl knows. No cookie: other servers on localhost
//!   would get it too.
//! - `Host` must be the loopback address, so that a foreign name that resolves to it (DNS rebinding) has no access.
//! - `Origin` and `Sec-Fetch-Site` must be the page's own, if the browser sends them.
//! - GET, and POST with a type that a foreign page cannot send without asking first (CORS preflight, which is refused).

use std::net::SocketAddr;

use hyper::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use subtle::ConstantTimeEq as _;

/// Type of the body of a POST.
pub(super) const YAML: &str = "application/yaml";

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the requests must have.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    address: SocketAddr,
    token: String,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Status code of the response.
    pub status: StatusCode,
    /// Body of the response.
    pub reason: &'static str,
}

const fn refuse<T>(status: StatusCode, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

impl Guard {
    /// Returns the guard of a server on this address.
    pub(super) fn new(address: SocketAddr, token: String) -> Self {
        Self { address, token }
    }

    /// Returns the URL of the page, with the secret.
    pub(super) fn url(&self) -> String {
        format!("http://{}/{}/", self.address, self.token)
    }

    /// Returns the path behind the secret.
    pub(super) fn admit<'a>(&self, request: &'a Parts) -> Result<&'a str, Refusal> {
        let header = |name: &HeaderName| {
            request.headers.get(name).map(|value| value.to_str().unwrap_or("not text"))
        };
        let hosts = [self.address.to_string(), format!("localhost:{}", self.address.port())];
        if !header(&HOST).is_some_and(|host| hosts.iter().any(|own| own == host)) {
            return refuse(StatusCode::MISDIRECTED_REQUEST, "Host is not this server's address\n");
        }
        let is_own = |origin: &str| {
            origin.strip_prefix("http://").is_some_and(|host| hosts.iter().any(|own| own == host))
        };
        if !header(&ORIGIN).is_none_or(is_own) {
            return refuse(StatusCode::FORBIDDEN, "the request comes from another page\n");
        }
        // `none`: the address bar, a bookmark.
        if !header(&FETCH_SITE).is_none_or(|site| matches!(site, "same-origin" | "none")) {
            return refuse(StatusCode::FORBIDDEN, "the request comes from another site\n");
        }
        let path = request.uri.path().strip_prefix('/').unwrap_or_default();
        let (token, path) = path.split_once('/').unwrap_or((path, ""));
        if !bool::from(token.as_bytes().ct_eq(self.token.as_bytes())) {
            let reason = "the URL lacks the token: use the whole URL that lbctl ui has printed\n";
            return refuse(StatusCode::NOT_FOUND, reason);
        }
        match request.method {
            Method::GET => Ok(path),
            Method::POST if header(&CONTENT_TYPE) == Some(YAML) => Ok(path),
            Method::POST => {
                refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/yaml\n")
            }
            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::http::request::Parts;
    use hyper::{Method, Request, StatusCode};

    use super::Guard;

    const HERE: (&str, &str) = ("host", "127.0.0.1:4711");

    fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn admit(method: Method, path: &str, headers: &[(&str, &str)]) -> Result<String, StatusCode> {
        let guard = Guard::new("127.0.0.1:4711".parse().unwrap(), "secret".to_owned());
        let request = request(method, path, headers);
        guard.admit(&request).map(str::to_owned).map_err(|refusal| refusal.status)
    }

    #[test]
    fn the_page_is_admitted() {
        let get = |headers: &[(&str, &str)]| admit(Method::GET, "/secret/api/status", headers);
        assert_eq!(get(&[HERE]), Ok("api/status".to_owned()));
        assert_eq!(get(&[("host", "localhost:4711")]), Ok("api/status".to_owned()));
        let fetched =
            [HERE, ("origin", "http://127.0.0.1:4711"), ("sec-fetch-site", "same-origin")];
        assert_eq!(get(&fetched), Ok("api/status".to_owned()));
        assert_eq!(get(&[HERE, ("sec-fetch-site", "none")]), Ok("api/status".to_owned()));
        assert_eq!(admit(Method::GET, "/secret/", &[HERE]), Ok(String::new()));
    }

    #[test]
    fn a_foreign_name_for_the_loopback_address_is_refused() {
        for host in ["evil.example:4711", "127.0.0.1", "127.0.0.1:80", "[::1]:4711", ""] {
            let got = admit(Method::GET, "/secret/", &[("host", host)]);
            assert_eq!(got, Err(StatusCode::MISDIRECTED_REQUEST), "{host}");
        }
        assert_eq!(admit(Method::GET, "/secret/", &[]), Err(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn other_pages_are_refused() {
        for header in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "https://127.0.0.1:4711"),
            ("origin", "http://127.0.0.1:8080"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let got = admit(Method::GET, "/secret/", &[HERE, header]);
            assert_eq!(got, Err(StatusCode::FORBIDDEN), "{header:?}");
        }
    }

    #[test]
    fn nothing_is_there_without_the_token() {
        for path in ["/", "/api/status", "/secre/", "/secret2/", "/SECRET/", "//secret/"] {
            let got = admit(Method::GET, path, &[HERE]);
            assert_eq!(got, Err(StatusCode::NOT_FOUND), "{path}");
        }
    }

    #[test]
    fn methods_and_types_are_few() {
        let post = |content_type| {
            admit(Method::POST, "/secret/api/try", &[HERE, ("content-type", content_type)])
        };
        assert_eq!(post("application/yaml"), Ok("api/try".to_owned()));
        for simple in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert_eq!(post(simple), Err(StatusCode::UNSUPPORTED_MEDIA_TYPE), "{simple}");
        }
        for method in [Method::OPTIONS, Method::PUT, Method::DELETE, Method::HEAD] {
            let got = admit(method.clone(), "/secret/", &[HERE]);
            assert_eq!(got, Err(StatusCode::METHOD_NOT_ALLOWED), "{method}");
        }
    }
}
