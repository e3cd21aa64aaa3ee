"""Change the canary's share of requests in a running application, without a restart.

    python -m nld_serve.canary            # print the share
    python -m nld_serve.canary 0.1        # a tenth of the requests
    python -m nld_serve.canary rollback   # none

Each change begins another run of the canary, also after an automatic rollback: GET /canary of the router says what the
canary does and why. Connects to the cluster's dashboard (RAY_DASHBOARD_ADDRESS or --address), with the cluster's token
if it has one.
"""

import argparse
import os
import sys
from typing import Any

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

ADDRESS = os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265")


def configs(client: ServeSubmissionClient) -> list[dict[str, Any]]:
    """The deployed configs of all applications."""
    return [details["deployed_app_config"] for details in client.get_serve_details()["applications"].values()]


def router_config(applications: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The router's entry in an application's config, added if missing. Raises ValueError for an unknown application."""
    found = [config for config in applications if config and config["name"] == name]
    if not found:
        known = ", ".join(config["name"] for config in applications if config) or "none"
        raise ValueError(f"no application {name!r} is deployed (deployed: {known}): set --application")
    deployments = found[0].setdefault("deployments", [])
    for deployment in deployments:
        if deployment["name"] == "router":
            return deployment
    deployments.append({"name": "router"})
    return deployments[-1]


def share_of(router: dict[str, Any]) -> float:
    return (router.get("user_config") or {}).get("canary_share", 0.0)


def changed(user_config: dict[str, Any], share: float) -> dict[str, Any]:
    """The router's settings with another share, as a new generation: it ends an automatic rollback."""
    return {**user_config, "canary_share": share, "generation": user_config.get("generation", 0) + 1}


def share(word: str) -> float:
    """Parse the command line's share."""
    value = 0.0 if word == "rollback" else float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"the share must be in [0, 1] or rollback, not {word}")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("share", nargs="?", type=share, help="the new share in [0, 1], or rollback; default: print it")
    parser.add_argument("--application", default="nld", help="name of the application (default: %(default)s)")
    parser.add_argument("--address", default=ADDRESS, help="address of the dashboard (default: %(default)s)")
    options = parser.parse_args()
    try:
        client = ServeSubmissionClient(options.address)
        applications = configs(client)
        router = router_config(applications, options.application)
        if options.share is not None:
            router["user_config"] = changed(router.get("user_config") or {}, options.share)
            client.deploy_applications({"applications": applications})
    except (ValueError, RuntimeError, ConnectionError) as error:
        print(f"canary: {error}", file=sys.stderr)
        return 1
    print(f"canary share: {share_of(router):g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
