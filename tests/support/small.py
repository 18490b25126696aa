"""A small Serve application, to be deployed beside ours."""

from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Small:
    """Answers every request with a word."""

    def __call__(self, request: object) -> str:
        return "small"


application = Small.bind()
