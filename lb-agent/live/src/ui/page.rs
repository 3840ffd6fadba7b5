//! The page: three files in the binary, and the headers that confine them.

use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageFile {
    /// Path behind the token; empty = the page itself.
    pub path: &'static str,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Its contents.
    pub text: &'static str,
}

/// All files of the page.
pub(super) const FILES: [PageFile; 3] = [
    PageFile {
        path: "",
        content_type: "text/html; charset=utf-8",
        text: include_str!("../../ui/index.html"),
    },
    PageFile {
        path: "app.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("../../ui/app.css"),
    },
    PageFile {
        path: "app.js",
        content_type: "text/javascript; charset=utf-8",
        text: include_str!("../../ui/app.js"),
    },
];

/// Headers of every response. The page loads its own files, asks its own server, and nothing else; a script cannot make
/// elements from text (Trusted Types), and no other page can frame it or refer to it.
pub(super) const HEADERS: [(HeaderName, &str); 6] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

#[cfg(test)]
mod tests {
    use super::FILES;

    /// The page stays small enough to read.
    const LIMIT: usize = 200_000;

    #[test]
    fn the_page_is_small() {
        let size: usize = FILES.iter().map(|file| file.text.len()).sum();
        assert!(size < LIMIT, "the page has {size} bytes, the limit is {LIMIT}");
    }

    #[test]
    fn the_page_names_no_other_server() {
        for file in FILES {
            for line in file.text.lines() {
                // The name of the XML namespace of SVG is not an address, and a part of the page not another file.
                let line = line.replace("http://www.w3.org/2000/svg", "").replace("url(#", "");
                for word in ["http:", "https:", "//cdn", "@import", "url("] {
                    assert!(!line.contains(word), "{}: {word}: {line}", file.path);
                }
            }
        }
    }

    #[test]
    fn scripts_do_not_make_elements_from_text() {
        for file in FILES {
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!file.text.contains(word), "{}: {word}", file.path);
            }
            for attribute in [" onclick=", " onload=", " onerror=", " style="] {
                assert!(!file.text.contains(attribute), "{}: {attribute}", file.path);
            }
        }
    }
}
