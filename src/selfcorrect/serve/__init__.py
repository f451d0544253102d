"""An OpenAI-compatible server that answers with the corrected attempt. Needs the extra ``selfcorrect[serve]``.

``protocol`` reads requests and writes responses; ``correct`` plays the attempts and counts votes; ``engine_backend``
and ``endpoint_backend`` give single answers; ``app`` keeps the limits; ``run`` is the process.
"""
