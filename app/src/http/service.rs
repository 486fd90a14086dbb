//! The caller's service as hyper runs it: every request is reported to the connection's driver,
//! and responses during a drain say that the connection ends.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, EXPECT, HeaderValue},
    service::Service,
};

use super::{body::RequestBody, watch::Watch};
use crate::{Drain, websocket::Upgrade};

/// Hears when the requests of a connection start and when their responses have ended.
pub(super) trait Observer: Clone + Send + 'static {
    fn request_started(&self, with_body: bool);
    fn response_ended(&self);
    /// The connection's watch, if it can move.
    fn watch(&self) -> Option<Watch>;
}

/// The service of one connection.
pub(super) struct Observed<S, O> {
    pub(super) service: Arc<S>,
    pub(super) observer: O,
    pub(super) drain: Drain,
}

impl<S, O, B> Service<Request<Incoming>> for Observed<S, O>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Future: Send + 'static,
    O: Observer,
{
    type Response = Response<ObservedBody<B, O>>;
    type Error = S::Error;
    // Boxed as hyper gives a connection's socket back only if this is Unpin.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let with_body = !request.body().is_end_stream();
        let running = Running::start(self.observer.clone(), with_body);
        let version = request.version();
        let drain = self.drain.clone();
        let watch = self.observer.watch();
        let awaits_word = request.headers().contains_key(EXPECT);
        let request = request.map(|incoming| RequestBody::new(incoming, awaits_word, watch));
        let response = self.service.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            // HTTP/2 has no such field: there it is GOAWAY that says it.
            // What may yet move is not sent away, nor what stays while the state may come back.
            let leaves = drain.has_begun() && !drain.phases().is_moving();
            if version < Version::HTTP_2 && leaves {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some(upgrade) = response.extensions_mut().remove::<Upgrade>()
                && response.status() == StatusCode::SWITCHING_PROTOCOLS
                && let Some(watch) = running.observer.watch()
            {
                watch.upgrade_with(upgrade);
            }
            Ok(response.map(|body| ObservedBody {
                body,
                _running: running,
            }))
        })
    }
}

/// A request on its way; its end is reported when this is dropped, in whatever way that comes.
struct Running<O: Observer> {
    observer: O,
}

impl<O: Observer> Running<O> {
    fn start(observer: O, with_body: bool) -> Self {
        observer.request_started(with_body);
        Self { observer }
    }
}

impl<O: Observer> Drop for Running<O> {
    fn drop(&mut self) {
        self.observer.response_ended();
    }
}

pin_project_lite::pin_project! {
    /// A response's body; hyper drops it when it has taken all of it.
    pub(super) struct ObservedBody<B, O: Observer> {
        #[pin]
        body: B,
        _running: Running<O>,
    }
}

impl<B: Body, O: Observer> Body for ObservedBody<B, O> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
