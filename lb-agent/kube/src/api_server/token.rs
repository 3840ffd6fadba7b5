//! The token of the service account, read again for each request: the kubelet replaces the file while the old token is valid.
//!
//! kube's own client keeps it for a minute by the wall clock. Once that clock is set back, it goes on with a token that expires
//! meanwhile, until the clock has caught up. An agent makes a few requests a minute, so reading costs nothing.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderValue};
use tower_layer::Layer;
use tower_service::Service;

type BoxError = Box<dyn Error + Send + Sync>;

/// The layer that adds the token in this file to each request.
#[derive(Clone, Debug)]
pub(super) struct TokenLayer(Arc<Path>);

impl TokenLayer {
    /// A token that is needed, but cannot be read, fails the request.
    pub(super) fn new(file: PathBuf) -> Self {
        Self(file.into())
    }
}

impl<S> Layer<S> for TokenLayer {
    type Service = TokenService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TokenService { inner, file: Arc::clone(&self.0) }
    }
}

/// A service whose requests have a token.
pub(super) struct TokenService<S> {
    inner: S,
    file: Arc<Path>,
}

impl<S, B> Service<Request<B>> for TokenService<S>
where
    S: Service<Request<B>>,
    S::Response: Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match header(&self.file) {
            Ok(value) => {
                request.headers_mut().insert(AUTHORIZATION, value);
                let response = self.inner.call(request);
                Box::pin(async move { response.await.map_err(Into::into) })
            }
            Err(err) => Box::pin(async move { Err(err.into()) }),
        }
    }
}

fn header(file: &Path) -> anyhow::Result<HeaderValue> {
    let name = || format!("token file {}", file.display());
    let token = fs::read_to_string(file).with_context(name)?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).with_context(name)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::header;

    #[test]
    fn the_token_is_that_of_the_file_and_never_printed() {
        let file = std::env::temp_dir().join(format!("lb-token-{}", std::process::id()));
        for token in ["one", "two\n"] {
            fs::write(&file, token).unwrap();
            let value = header(&file).unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {}", token.trim()));
            assert_eq!(format!("{value:?}"), "Sensitive");
        }
        fs::write(&file, "a\nb").unwrap();
        for _ in 0..2 {
            let err = format!("{:#}", header(&file).unwrap_err());
            assert!(err.starts_with(&format!("token file {}: ", file.display())), "{err}");
            drop(fs::remove_file(&file));
        }
    }
}
