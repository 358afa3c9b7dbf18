//! Sockets: accepts connections, speaks TLS where it is asked to, and goes down in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::app::{App, AppOptions, router};
use crate::auth::Keys;
use crate::error::ServeError;
use crate::models::{Capacity, ModelSpec, Models};

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How to serve.
#[derive(Debug)]
pub struct ServeOptions {
    /// Where to listen; port 0 takes any that is free.
    pub address: SocketAddr,
    /// Certificate and key in PEM files: HTTPS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Keys that open the server.
    pub api_keys: Vec<String>,
    /// A file of such keys, read again at SIGHUP.
    pub api_key_file: Option<PathBuf>,
    /// Connections at once; more of them wait.
    pub max_connections: usize,
    /// A connection that sends no request for so long is closed; so is one that is slow with its headers.
    pub idle_timeout: Duration,
    /// Requests of one model at once, and memory of all models.
    pub capacity: Capacity,
    /// How requests are treated.
    pub app: AppOptions,
    /// How long running answers may take when the server is told to end.
    pub grace: Duration,
}

/// Serves until SIGINT or SIGTERM; a second one ends at once. `listening` is told the address.
///
/// Errors: the address is taken, a file cannot be read, the first model cannot be loaded.
pub fn serve(
    specs: Vec<ModelSpec>,
    options: ServeOptions,
    listening: impl FnOnce(SocketAddr) + Send,
) -> Result<(), ServeError> {
    serve_until(specs, options, listening, std::future::pending())
}

/// As [`serve`], and goes down in the same order when `stop` is done.
///
/// Errors: those of [`serve`].
pub fn serve_until(
    specs: Vec<ModelSpec>,
    options: ServeOptions,
    listening: impl FnOnce(SocketAddr) + Send,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(run(specs, options, listening, stop));
    runtime.shutdown_background(); // a model that is being read does not hold the program
    served
}

async fn run(
    specs: Vec<ModelSpec>,
    options: ServeOptions,
    listening: impl FnOnce(SocketAddr) + Send,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let keys = Keys::new(options.api_keys, options.api_key_file)?;
    let tls = options.tls.as_ref().map(|(cert, key)| acceptor(cert, key)).transpose()?;
    let listen = |source| ServeError::Listen { address: options.address.to_string(), source };
    let listener = TcpListener::bind(options.address).await.map_err(listen)?;
    let app = App::new(Models::new(specs, options.capacity)?, keys, options.app);
    let router = router(&app)?;
    let first = app.models.get(None).await.map_err(|error| ServeError::Load {
        model: app.models.names().next().unwrap_or_default().to_owned(),
        problem: error.body.message,
    })?;
    drop(first);
    let mut signals = Signals::new()?;
    listening(listener.local_addr()?);

    let mut stop = std::pin::pin!(stop);
    let (graceful, places) = (GracefulShutdown::new(), Arc::new(Semaphore::new(options.max_connections)));
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = tokio::select! {
            accepted = async { (place.await, listener.accept().await) } => accepted,
            () = &mut stop => break,
            signal = signals.next() => match signal {
                Signal::End => break,
                Signal::Reload => {
                    match app.keys.reload() {
                        Ok(()) => tracing::info!("API keys read again"),
                        Err(error) => tracing::error!(%error, "the API keys stay as they were"),
                    }
                    continue;
                }
            }
        };
        let (Ok(place), Ok((stream, _))) = accepted else {
            // Out of descriptors, most likely: others will close.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        stream.set_nodelay(true).ok(); // tokens are sent when they come
        let (router, watcher, tls) = (router.clone(), graceful.watcher(), tls.clone());
        let idle = options.idle_timeout;
        tokio::spawn(async move {
            match tls {
                None => talk(stream, router, watcher, idle).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                        talk(stream, router, watcher, idle).await;
                    }
                }
            }
            drop(place);
        });
    }
    app.close();
    drop(listener);
    tracing::info!("going down: running answers may end");
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(options.grace) => tracing::warn!("answers that still ran are cut"),
        () = signals.end() => tracing::warn!("told twice: answers that still run are cut"),
    }
    Ok(())
}

/// Speaks HTTP/1.1 on one connection until it ends.
async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
    idle: Duration,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "a connection broke");
    }
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, ServeError> {
    let problem =
        |path: &Path, problem: String| ServeError::File { path: path.display().to_string(), problem };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| problem(cert, format!("is no PEM certificate: {error}")))?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| problem(key, format!("is no PEM private key: {error}")))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(chain, secret))
        .map_err(|error| problem(cert, format!("does not go with its key: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What the outside tells a running server.
enum Signal {
    /// SIGINT, SIGTERM.
    End,
    /// SIGHUP.
    Reload,
}

/// Where signals arrive.
struct Signals {
    #[cfg(unix)]
    streams: [tokio::signal::unix::Signal; 3],
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let [a, b, c] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Signals { streams: [a?, b?, c?] })
    }

    async fn next(&mut self) -> Signal {
        let [interrupt, terminate, hang_up] = &mut self.streams;
        tokio::select! {
            _ = interrupt.recv() => Signal::End,
            _ = terminate.recv() => Signal::End,
            _ = hang_up.recv() => Signal::Reload,
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {})
    }

    async fn next(&mut self) -> Signal {
        tokio::signal::ctrl_c().await.ok();
        Signal::End
    }
}

impl Signals {
    async fn end(&mut self) {
        while !matches!(self.next().await, Signal::End) {}
    }
}
