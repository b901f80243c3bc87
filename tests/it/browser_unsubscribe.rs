//! The page of unsubscribing in a real browser, as a person uses it: phone and desktop, light and dark.

use crate::support::{
    browser::{Browser, DESKTOP},
    installation::Installation,
    public::{Public, link_in},
    requests::sample,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_confirms_and_may_leave_everything() {
    let post = Installation::start().await;
    let request = post.publish(&sample("reseller_announcement", &["ada@example.bj"])).await;
    post.database.wait_for(request, "sent").await;
    let link = link_in(&post.mails(1).await[0]);
    let public = Public::of(post.daemon());
    let browser = Browser::start_at(&public.here("")).await;
    let path = public.here(&link)[public.here("").len()..].to_owned();

    browser.open(&path).await;
    browser.shows("Se désabonner").await;
    browser.shows("annonces commerciales").await;
    browser.inspect("unsubscribe-ask").await;
    let on_the_list = async || -> Vec<String> {
        sqlx::query_scalar("select category from suppressions order by category")
            .fetch_all(&post.database.pool)
            .await
            .expect("the list")
    };
    assert!(on_the_list().await.is_empty(), "nothing is done before it is confirmed");

    browser.click("button.primary").await;
    browser.shows("C’est fait").await;
    assert_eq!(on_the_list().await, ["marketing"]);
    browser.inspect("unsubscribe-done").await;
    browser.click("button.secondary").await;
    browser.shows("aucun e‑mail promotionnel").await;
    assert_eq!(on_the_list().await, ["", "marketing"]);
    browser.inspect("unsubscribe-all").await;

    // What was copied in part leads nowhere, and says so.
    browser.open(&path[..path.len() - 3]).await;
    browser.shows("Ce lien n’est pas valable").await;
    browser.picture("unsubscribe-no-link", DESKTOP).await;
    browser.close().await;
    post.finish().await;
}
