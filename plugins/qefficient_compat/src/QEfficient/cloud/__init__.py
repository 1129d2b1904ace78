"""Commands: ``python -m QEfficient.cloud.infer``, ``export``, ``compile``, ``execute``."""
