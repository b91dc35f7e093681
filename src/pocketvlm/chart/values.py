"""The chart's values: every key beside `run:`, its unit, its default.

`make docs` writes charts/pocketvlm/values.yaml, values.schema.json and docs/chart.md from here and from pods.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pocketvlm.chart.pods import (
    DEFAULTS,
    PRESETS,
    ChartBlock,
    Conductor,
    Defaults,
    Digest,
    Images,
    KubernetesType,
    Labels,
    Preset,
    PullPolicy,
    Quantity,
    Resources,
    Seconds,
    Stages,
    Toleration,
)

EgressRule = Annotated[dict[str, Any], KubernetesType("networking.v1.NetworkPolicyEgressRule")]
Peer = Annotated[dict[str, Any], KubernetesType("networking.v1.NetworkPolicyPeer")]
RenderMode = Literal["skipIfMissing", "failIfMissing", "alwaysRender"]


class Store(ChartBlock):
    """Where artifacts lie. Left alone: the bucket `pocketvlm` of the Service `object-store` in the namespace."""

    url: str = Field(default="", pattern=r"^(s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/.*)?)?$")
    """`s3://bucket/prefix`; empty: `s3://pocketvlm` of the Service `object-store`."""
    endpoint: str = Field(default="", pattern=r"^(https?://.+)?$")
    """URL of an S3 service other than AWS; empty: AWS, or `http://object-store:9000` where `url` is empty or
    `objectStore` is enabled."""
    region: str = "us-east-1"
    """Region of the bucket."""
    existing_secret: str = ""
    """Secret with the keys, mounted as files; empty: workload identity, or `object-store` where that is the endpoint."""
    access_key_id_key: str = "access-key-id"
    """Key in the secret."""
    secret_access_key_key: str = "secret-access-key"
    """Key in the secret."""
    session_token_key: str = ""
    """Key in the secret, for temporary keys; empty: none."""


class Hub(ChartBlock):
    """Access to gated models of the Hugging Face Hub."""

    existing_secret: str = ""
    """Secret with a token, mounted as a file; empty: no token."""
    token_key: str = "token"
    """Key in the secret."""


class Keys(ChartBlock):
    """Keys of the services that the labeller calls, mounted as files into its pods and no others."""

    existing_secret: str = ""
    """Secret that holds them; empty: none."""
    teacher_key: str = ""
    """Key in the secret: the API key of `run.labeller.teacher`."""
    second_teacher_key: str = ""
    """Key in the secret: the API key of `run.labeller.second_teacher`."""
    unsplash_key: str = ""
    """Key in the secret: Unsplash's access key."""
    kaggle_username_key: str = ""
    """Key in the secret: Kaggle's user name."""
    kaggle_key_key: str = ""
    """Key in the secret: Kaggle's key."""


class ObjectStoreImage(ChartBlock):
    """MinIO's last public image, of September 2025: no longer maintained, for trying things out only."""

    repository: str = "quay.io/minio/minio"
    """Full name."""
    tag: str = "RELEASE.2025-09-07T16-13-09Z"
    """Tag."""
    digest: Digest = "sha256:14cea493d9a34af32f524e538b8346cf79f3321eff8e708c1e2960462bd8936e"
    """Decides, whatever the tag says; set it to empty with another repository."""
    pull_policy: PullPolicy = "IfNotPresent"
    """When the node asks the registry."""


class Persistence(ChartBlock):
    """The claim `data-object-store-0`. It stays when the release goes, and so do the artifacts."""

    enabled: bool = True
    """False: an emptyDir, gone with the pod."""
    size: Quantity = "20Gi"
    """Of the claim, or the limit of the emptyDir."""
    storage_class_name: str | None = None
    """Default: the cluster's default class."""


class ObjectStore(ChartBlock):
    """MinIO in the namespace, as Service and StatefulSet `object-store`: for trying things out. One for each namespace."""

    enabled: bool = False
    """Bring it with this release; a second release in the namespace leaves this off and finds it by its name."""
    development_credentials: bool = False
    """Make the secret `object-store` with keys that everybody can read in this chart. Otherwise `store.existingSecret`
    holds them."""
    image: ObjectStoreImage = ObjectStoreImage()
    persistence: Persistence = Persistence()
    resources: Resources = Field(default={"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}})
    """Requests and limits."""
    node_selector: Labels = Field(default={})
    """Labels of the node."""
    tolerations: list[Toleration] = Field(default=[])
    """Taints of the node."""


class Kueue(ChartBlock):
    """Admission by Kueue 0.19 or later. The annotation that holds a stage back is there in any case."""

    queue_name: str = ""
    """LocalQueue of the stages, as the label `kueue.x-k8s.io/queue-name`; empty: none."""
    conductor_queue_name: str = ""
    """LocalQueue of the conductor. It must never wait behind its own stages: give it a quota of its own."""


class PodMonitor(ChartBlock):
    """Scrapes the conductor and the stages while they run."""

    enabled: bool = False
    """Render it."""
    render_mode: RenderMode = "skipIfMissing"
    """What to do where the cluster has no `monitoring.coreos.com/v1`."""
    interval_seconds: Seconds = 30
    """Between two scrapes."""
    labels: Labels = Field(default={})
    """More labels, where Prometheus selects by them."""


class PrometheusRule(ChartBlock):
    """Alerts: a run has failed, a pod does not start, a stage makes no progress."""

    enabled: bool = False
    """Render it."""
    render_mode: RenderMode = "skipIfMissing"
    """What to do where the cluster has no `monitoring.coreos.com/v1`."""
    labels: Labels = Field(default={})
    """More labels, where Prometheus selects by them."""
    alert_labels: Labels = Field(default={"severity": "warning"})
    """Labels of every alert."""
    no_progress_seconds: Seconds = 3600
    """A stage that reports no progress for so long is an alert."""


class Dashboard(ChartBlock):
    """A Grafana dashboard in a ConfigMap, for Grafana's sidecar."""

    enabled: bool = False
    """Render it."""
    labels: Labels = Field(default={"grafana_dashboard": "1"})
    """By which the sidecar finds it."""
    annotations: Labels = Field(default={})
    """For example the sidecar's folder."""


class Metrics(ChartBlock):
    """What Prometheus and Grafana see."""

    port: int = Field(default=9090, ge=1024, le=65535)
    """Port of `/metrics` in every pod."""
    pod_monitor: PodMonitor = PodMonitor()
    prometheus_rule: PrometheusRule = PrometheusRule()
    dashboard: Dashboard = Dashboard()


class NetworkPolicies(ChartBlock):
    """Who may talk to the pods, and whom they may call. Needs a network plugin that enforces it."""

    enabled: bool = False
    """Render them."""
    metrics_from: list[Peer] = Field(default=[{"namespaceSelector": {}}])
    """Who may scrape."""
    api_server_ports: list[int] = Field(default=[443, 6443])
    """Where the conductor reaches the API server."""
    extra_egress: list[EgressRule] = Field(default=[])
    """What stages may call besides DNS, the store and HTTPS."""


class Account(ChartBlock):
    """A ServiceAccount."""

    create: bool = True
    """False: it exists."""
    name: str = ""
    """Default: release and role, for example `elements-stages`."""
    annotations: Labels = Field(default={})
    """Workload identity, for example `eks.amazonaws.com/role-arn`."""


class ServiceAccounts(ChartBlock):
    """The conductor's has a Role; the stages' has no rights and its token is not mounted."""

    conductor: Account = Account()
    """Of the conductor."""
    stages: Account = Account()
    """Of the stages."""


class PodSecurity(ChartBlock):
    """User and group of every pod, as the images have them. All else is what Pod Security `restricted` asks for."""

    user: int | None = Field(default=10001, ge=1)
    """UID; null: the platform decides, as OpenShift does."""
    group: int | None = Field(default=10001, ge=1)
    """GID, and the group of volumes; null: the platform decides."""


class Values(ChartBlock):
    """The chart's values."""

    allow_upgrade: bool = False
    """Let `helm upgrade` through. It suspends running stages again; install another release instead."""
    image: Images = Images()
    store: Store = Store()
    hub: Hub = Hub()
    keys: Keys = Keys()
    object_store: ObjectStore = ObjectStore()
    defaults: Defaults = DEFAULTS
    """For every pod, unless its stage says otherwise."""
    stages: Stages = Stages()
    presets: dict[str, Preset] = PRESETS
    """Pools of GPU nodes by name, for `stages.trainer.preset`. Labels of NVIDIA's GPU feature discovery, GKE, EKS with
    Karpenter or Auto Mode, and AKS; GKE and AKS offer no L40S."""
    conductor: Conductor = Conductor()
    kueue: Kueue = Kueue()
    metrics: Metrics = Metrics()
    network_policies: NetworkPolicies = NetworkPolicies()
    service_accounts: ServiceAccounts = ServiceAccounts()
    pod_security: PodSecurity = PodSecurity()
