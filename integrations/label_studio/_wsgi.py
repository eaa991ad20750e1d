"""The server's settings in, its application `app` out, for gunicorn; as a program it serves by itself, for trying."""

import argparse
import logging
import os

from label_studio_ml.api import init_app
from model import QAlign

logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"))

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Q-Align for Label Studio")
    parser.add_argument("-p", "--port", type=int, default=9090)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--basic-auth-user")
    parser.add_argument("--basic-auth-pass")
    given = parser.parse_args()
    init_app(QAlign, given.basic_auth_user, given.basic_auth_pass).run(given.host, given.port)
else:
    app = init_app(QAlign)  # it reads BASIC_AUTH_USER and BASIC_AUTH_PASS
