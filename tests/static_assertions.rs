//! Promises about types that hold at compile time: Send, Sync, 'static, Clone, Unpin, sizes.

use firstbyte::*;

fn send<T: Send>(_: &T) {}
fn is_send_sync<T: Send + Sync + 'static>() {}
fn is_clone<T: Clone>() {}

#[test]
fn handles_can_be_shared_and_cloned() {
    is_send_sync::<ConnectionPool>();
    is_send_sync::<Client>();
    is_send_sync::<Limits>();
    is_send_sync::<Timeouts>();
    is_send_sync::<RequestOptions>();
    is_send_sync::<ConnectionInfo>();
    is_send_sync::<ConnectionPoolStats>();
    is_send_sync::<StepMetrics>();
    is_send_sync::<RequestTiming>();
    is_send_sync::<ConnectionTrace>();
    is_send_sync::<WarmReport>();
    is_send_sync::<TimingHandle>();
    is_send_sync::<tls::TlsOptions>();
    is_send_sync::<tcp::TcpOptions>();
    is_send_sync::<dns::SystemResolver>();
    is_send_sync::<proxy::ProxyRules>();
    is_send_sync::<proxy::Proxy>();
    is_clone::<ConnectionPool>();
    is_clone::<Client>();
    is_clone::<ConnectionInfo>();
    is_clone::<Error>();
}

#[test]
fn error_is_one_pointer_shared_and_an_error() {
    fn is_error<T: std::error::Error + Send + Sync + Clone + 'static>() {}
    is_error::<Error>();
    assert_eq!(size_of::<Error>(), size_of::<usize>());
    assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
}

#[test]
fn bodies_can_move_between_threads() {
    fn is_response_body<T>()
    where
        T: http_body::Body<Data = bytes::Bytes, Error = Error> + Send + Unpin + 'static,
    {
    }
    is_response_body::<ResponseBody>();
    fn is_send<T: Send + 'static>() {}
    is_send::<Body>();
    is_send::<Response>();
    is_send::<RequestBuilder>();
    is_send::<ClientBuilder>();
    is_send::<ConnectionPoolBuilder>();
    is_send::<Upgraded>();
    #[cfg(feature = "websocket")]
    {
        is_send::<WebSocket>();
        is_send::<WebSocketBuilder>();
        is_send_sync::<WebSocketSender>();
        is_send_sync::<WebSocketReceiver>();
    }
    #[cfg(feature = "hyper-util")]
    {
        is_send::<HyperStream>();
        is_send_sync::<HyperConnector>();
    }
}

#[test]
fn every_future_is_send() {
    let pool = ConnectionPool::new();
    let client = pool.client("test", "https://api.test").build().unwrap();
    send(&client.get("/").send());
    send(&client.warm(1));
    send(&pool.warm("https://api.test", 1));
    send(&pool.shutdown(std::time::Duration::ZERO));
    send(&pool.send(http::Request::new(())));
    #[allow(dead_code)]
    async fn of_a_response(mut response: Response) {
        send(&response.chunk());
        send(&response.bytes());
        send(&response.text());
    }
}

#[test]
fn pools_and_clients_are_built_and_dropped_without_a_runtime() {
    let pool = ConnectionPool::builder()
        .limits(Limits::gateway())
        .build()
        .unwrap();
    let client = pool
        .client("test", "https://api.test/v1")
        .bearer_auth("key")
        .build()
        .unwrap();
    assert!(pool.get_client("test").is_some());
    assert!(pool.remove_client("test").is_some() && pool.get_client("test").is_none());
    drop(pool);
    drop(client);
}
