"""Mutual TLS and the gRPC options that the two ends of a session stream share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import grpc
from cryptography import x509

from trillium.engines.descriptors import connections
from trillium.engines.frames import MAX_FRAME_BYTES, StreamConfig
from trillium.engines.revoked import warn_of_end
from trillium.errors import UserError

SERVICE: Final = "trillium.Session"
METHOD: Final = "Serve"
SPARE_STREAMS: Final = 16  # for those that are still being let in, or turned away
WAITING: Final = 512  # connections beside those of the clients: not let in yet, or turned away
STREAMS: Final = 4  # of one connection, and of one certificate, that are not let in yet
Options = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class _TLS:
    """Who one side is and whom it trusts, all in PEM; the key is not encrypted."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, authority: Path, certificate: Path, key: Path) -> Self:
        for path in (authority, certificate):
            try:
                warn_of_end(str(path), x509.load_pem_x509_certificate(_content(path)))
            except ValueError as error:
                why = "it is no certificate"
                raise UserError(str(path), why, "Name a .crt file", code="keys") from error
        return cls(*(_content(path) for path in (authority, certificate, key)))


class ServerTLS(_TLS):
    """The server's certificate and key; a client without a certificate of the authority is refused."""

    def credentials(self) -> grpc.ServerCredentials:
        """Return what gRPC wants."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.authority,
            require_client_auth=True,
        )


class ClientTLS(_TLS):
    """A client's certificate and key; the common name of the certificate is the client's name."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what gRPC wants."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


def streams(config: StreamConfig) -> int:
    """Return how many streams a server serves at a time, each with a thread."""
    return config.max_clients + SPARE_STREAMS


def listen(
    address: str,
    tls: ServerTLS,
    config: StreamConfig,
    pool: ThreadPoolExecutor,
    serve: Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]],
) -> tuple[grpc.Server, int]:
    """Return a server of the session stream, not started yet, and its port.

    Raises:
        UserError: the address cannot be listened on.
    """
    handler = grpc.stream_stream_rpc_method_handler(serve)
    server = grpc.server(
        pool,
        handlers=[grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})],
        options=server_options(config),
        maximum_concurrent_rpcs=streams(config),
    )
    try:
        return server, int(server.add_secure_port(address, tls.credentials()))
    except RuntimeError as error:
        raise UserError(
            f"address {address}",
            "the session server cannot listen on it",
            "Write host:port with an address of this machine and a port that is free",
        ) from error


def server_options(config: StreamConfig) -> Options:
    """Return the options of the server: no second server on the port, and probes are welcome.

    Whoever does not say in time who it is, or opens no stream, is cut off; and there are no more
    connections than descriptors, beside those that files need.
    """
    most = connections(config.max_clients + WAITING)
    return [
        *_options(config),
        ("grpc.max_allowed_incoming_connections", most),
        ("grpc.server_handshake_timeout_ms", round(config.hello_seconds * 1000)),
        ("grpc.max_connection_idle_ms", round(config.hello_seconds * 1000)),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 50),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def client_options(config: StreamConfig) -> Options:
    """Return the options of a client: it retries by itself, with another token."""
    return [
        *_options(config),
        ("grpc.enable_retries", 0),
        # Else a new channel would inherit the back-off of the one before.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _options(config: StreamConfig) -> Options:
    return [
        ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
        ("grpc.max_send_message_length", MAX_FRAME_BYTES),
        ("grpc.keepalive_time_ms", round(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
        ("grpc.http2.ping_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
        # A fixed window in place of one that grows with probes of the bandwidth. Those fill the
        # buffers of a slow link, then take their own late answer for a lost link; and while one is
        # under way, a link that falls silent is not probed.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", config.window_bytes),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            str(path),
            f"it cannot be read ({error.strerror})",
            "Make certificates and keys with `trillium keys`, or name the folder that holds them",
            code="keys",
        ) from error
