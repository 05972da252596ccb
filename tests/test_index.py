"""GET / links to the documents."""

import re

from conftest import Client


async def test_a_browser_gets_a_page_that_leads_to_the_documents(client: Client) -> None:
    headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    async with client.http.get(client.url + "/", headers=headers) as response:
        page = await response.text()
        assert response.status == 200 and response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert response.headers["X-Content-Type-Options"] == "nosniff" and "X-Request-Id" in response.headers
    assert "Server" not in response.headers and len(page) < 2000
    assert "rpc.discover" in page
    links = re.findall('href="([^"]+)"', page)
    assert "/openapi.json" in links
    for link in links:
        async with client.http.get(client.url + link) as linked:
            assert linked.status == 200


async def test_everybody_else_gets_json(client: Client) -> None:
    for accept in ("*/*", "application/json"):
        async with client.http.get(client.url + "/", headers={"Accept": accept}) as response:
            index = await response.json()
            assert response.headers["Vary"] == "Accept"
        assert index["openapi"]["url"] == "/openapi.json"
        assert (index["openrpc"]["url"], index["openrpc"]["method"]) == ("/rpc", "rpc.discover")
    async with client.http.post(client.url + "/") as response:
        assert response.status == 405
